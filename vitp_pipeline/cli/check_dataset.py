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
        limit: Annotated[int, typer.Option(min=0, help="Look at so many images, evenly spread; 0 = all.")] = 0,
        workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 1,
        queries: Annotated[int, typer.Option(min=1, help="Masks of the generator, for the estimate.")] = 100,
        mask_size: Annotated[
            str | None,
            typer.Option(
                help="Size of its masks, for the estimate (default: a quarter of the images').", metavar="HxW"
            ),
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="For machines, and with every name.")] = False,
    ) -> None:
        """Sizes, modes, label values, classes, missing and broken files of a dataset; what stage one will store.

        vitp check-dataset ade20k --data-root data/ade/ADEChallengeData2016 --split val --out ade20k.png

        vitp check-dataset mine.toml --data-root data/mine --json

        Reads every file. Exit code 3 when some images cannot be used; each file is named with the reason.
        """
        from vitp_pipeline.checking import check_dataset

        check_dataset(name, data_root, split, out, limit, workers, queries, mask_size, json)
