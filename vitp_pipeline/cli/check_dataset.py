"""vitp check-dataset"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import DataRoot, Device


class How(StrEnum):
    measured = "measured"
    flops = "flops"


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
        queries: Annotated[int, typer.Option(min=1, max=10**6, help="Masks of the generator, for the estimate.")] = 100,
        mask_size: Annotated[
            str | None,
            typer.Option(
                help="Size of its masks, for the estimate (default: a quarter of the images').", metavar="HxW"
            ),
        ] = None,
        tasks: Annotated[int, typer.Option(min=1, max=10**6, help="Tasks at once, for the estimate.", metavar="N")] = 1,
        time: Annotated[
            How | None,
            typer.Option(
                help="Estimate the time of stage one, too. measured: run the generator on a few images, which also "
                "says how much is stored; flops: count its operations, without weights."
            ),
        ] = None,
        tried: Annotated[int, typer.Option(min=1, max=10**9, help="Images to run it on, for --time.", metavar="N")] = 3,
        config: Annotated[
            str | None, typer.Option(help="The generator for --time (default: the recipe's), named as in a recipe.")
        ] = None,
        checkpoint: Annotated[str | None, typer.Option(help="Its weights.", metavar="FILE")] = None,
        device: Device = None,
        json: Annotated[bool, typer.Option("--json", help="For machines, and with every name.")] = False,
    ) -> None:
        """Sizes, modes, label values, classes, missing and broken files of a dataset; what stage one will need.

        vitp check-dataset ade20k --data-root data/ade/ADEChallengeData2016 --split val --out ade20k.png

        vitp check-dataset mine.toml --data-root data/mine --json

        vitp check-dataset camvid --data-root data/camvid --split val --time measured --tasks 8

        Reads every file. Exit code 3 when some images cannot be used; each file is named with the reason.
        """
        from vitp_pipeline.diagnostics.check_dataset import check_dataset

        generator = {
            "config": config and str(Path(config).resolve() if Path(config).exists() else config),
            "checkpoint": checkpoint and str(Path(checkpoint).resolve()),
            "device": device,
        }
        check_dataset(
            name, data_root, split, out, limit, workers, queries, mask_size, json, tasks, time, tried, **generator
        )
