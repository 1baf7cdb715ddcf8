"""vitp import-proposals"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import (
    Changes,
    DataRoot,
    Json,
    Out,
    RecipeName,
    RetryFailed,
    Shard,
    checked_as,
    member_of,
    with_keys,
)


def _formats() -> Iterable[str]:
    from vitp_pipeline.interop.mask_import import MASK_FORMATS

    return MASK_FORMATS


def register(app: typer.Typer) -> None:
    @app.command("import-proposals", cls=with_keys(format=_formats))
    def import_proposals(
        recipe: RecipeName,
        data_root: DataRoot,
        out: Out,
        format: Annotated[
            str,
            typer.Option("--from", help="Format of the masks.", metavar="FORMAT", callback=member_of(_formats)),
        ],
        masks: Annotated[
            Path | None,
            typer.Option(
                "--masks",
                help="Masks that the other tool wrote: a folder (npz, sam) or a file; not with ground-truth.",
                metavar="PATH",
            ),
        ] = None,
        split: Annotated[str | None, typer.Option(help="Split of the manifest (default: the recipe's).")] = None,
        shard: Shard = None,
        no_object_share: Annotated[
            float,
            typer.Option(
                callback=checked_as("Fraction"),
                help="Share of 1 − score that goes to “no object”; the rest goes to the other classes.",
            ),
        ] = 0.5,
        changes: Changes = None,
        retry_failed: RetryFailed = False,
        json: Json = False,
    ) -> None:
        """Import masks of another tool in place of stage one, to classify and evaluate them.

        npz: a folder with ID.npz (masks and scores, or logits). coco: results as pycocotools reads them, RLE or
        polygons with scores. mmdet: the pickle of mmdetection 3's test script; nothing in it is executed. sam: masks
        without classes, as Segment Anything writes them. ground-truth: the masks of the labels, without their classes.

        vitp import-proposals mine --data-root data --out run --from npz --masks m

        vitp import-proposals mine --data-root data --out run --from coco --masks m

        vitp import-proposals mine --data-root data --out run --from sam --masks sam
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.flags import parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import ProposalSettings
        from vitp_pipeline.execution.sharding import choose_shard
        from vitp_pipeline.stages.import_proposals import import_proposals

        loaded = load_recipe(recipe)
        settings = loaded.stage(ProposalSettings, **{"config": "(imported)", "split": split} | parse_changes(changes))
        with documented(json) as document:
            outcome = import_proposals(
                loaded, settings, format, masks, data_root, out, choose_shard(shard), no_object_share, retry_failed
            )
            document.give(outcome)
            outcome.report("proposals")
