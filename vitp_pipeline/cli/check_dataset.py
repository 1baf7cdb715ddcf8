"""vitp check-dataset"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import DataRoot


def register(app: typer.Typer) -> None:
    @app.command("check-dataset", rich_help_panel="Datasets")
    def check_dataset(
        name: Annotated[
            str, typer.Argument(help="A recipe or a manifest: a shipped name or a .toml path.", metavar="NAME")
        ],
        data_root: DataRoot,
        split: Annotated[str | None, typer.Option(help="Only this split (default: all).", metavar="S")] = None,
        out: Annotated[
            Path | None, typer.Option(help="Draw a sheet of images with their labels laid over them.", metavar="PNG")
        ] = None,
        limit: Annotated[int, typer.Option(min=0, max=10**9, help="Look at so many images, spread; 0 = all.")] = 0,
        workers: Annotated[int, typer.Option(min=1, max=1024, help="Threads that read.")] = 1,
        json: Annotated[bool, typer.Option("--json", help="For machines, and with every name.")] = False,
    ) -> None:
        """Sizes, modes, label values, classes, missing and broken files of a dataset.

        vitp check-dataset ade20k --data-root data/ade/ADEChallengeData2016 --split val --out ade20k.png

        vitp check-dataset mine.toml --data-root data/mine --json

        Reads every file. Exit code 3 when some images cannot be used; each file is named with the reason.
        """
        from vitp_pipeline.diagnostics.check_dataset import check_dataset

        check_dataset(name, data_root, split, out, limit, workers, json)
