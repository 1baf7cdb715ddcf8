"""vitp prepare"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import DataRoot, Json


def register(app: typer.Typer) -> None:
    @app.command("prepare")
    def prepare(
        dataset: Annotated[
            str,
            typer.Argument(
                help="ade20k, camvid, cityscapes, clothing-co-parsing, coco, coco-sample or coco-stuff.",
                metavar="DATASET",
            ),
        ],
        data_root: DataRoot,
        only: Annotated[
            list[str] | None, typer.Option("--only", help="Make only these products (default: all).", metavar="WHAT")
        ] = None,
        split: Annotated[str | None, typer.Option(help="Prepare only this split.", metavar="S")] = None,
        workers: Annotated[int, typer.Option(min=1, max=1024, help="Number of threads.")] = 1,
        json: Json = False,
    ) -> None:
        """Make the files that are derived from a download, mostly by other tools' scripts, where they are missing.

        vitp prepare cityscapes --data-root data/cityscapes --only panoptic

        vitp prepare ade20k --data-root data/ade --split val --workers 8

        Products: ade20k panoptic, instances, semantic; camvid images, labels; cityscapes panoptic, train-ids,
        label-ids; clothing-co-parsing images, labels, lists; coco semantic, instances; coco-sample images, labels,
        annotations; coco-stuff train-ids. It can be stopped and restarted: existing files are kept.
        """
        from dataclasses import asdict

        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.datasets.prepare import prepare

        with documented(json) as document:
            prepared = prepare(dataset, data_root, only or [], split, workers)
            made, lacking = (list(map(asdict, some)) for some in (prepared.products, prepared.lacking))
            document.give(products=made, lacking=lacking)
            prepared.report()
