"""vitp check-dataset"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import DataRoot


def register(app: typer.Typer) -> None:
    @app.command("check-dataset")
    def check_dataset(
        name: Annotated[
            str, typer.Argument(help="Recipe or manifest: a shipped name or a .toml path.", metavar="NAME")
        ],
        data_root: DataRoot,
        split: Annotated[str | None, typer.Option(help="Check only this split (default: all).", metavar="S")] = None,
        out: Annotated[
            Path | None,
            typer.Option(help="Draw a sheet of images beside their fine and coarse labels and boxes.", metavar="PNG"),
        ] = None,
        limit: Annotated[
            int, typer.Option(min=0, max=10**9, help="Check at most this many images, evenly spread; 0 = all.")
        ] = 0,
        workers: Annotated[int, typer.Option(min=1, max=1024, help="Number of reading threads.")] = 1,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON document, with every image id.")] = False,
    ) -> None:
        """Check a dataset: sizes, modes, label values, classes, missing and broken files.

        vitp check-dataset ade20k --data-root data/ade --split val --out ade20k.png

        vitp check-dataset mine.toml --data-root data/mine --json

        Reads every file. Exit code 3 if some images cannot be used; each file is listed with its reason.
        """
        from vitp_pipeline.diagnostics.check_dataset import check_dataset

        check_dataset(name, data_root, split, out, limit, workers, json)
