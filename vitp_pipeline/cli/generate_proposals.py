"""vitp generate-proposals"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli import options


def register(app: typer.Typer) -> None:
    @app.command("generate-proposals", cls=options.with_keys("generate-proposals"))
    def generate_proposals(
        recipe: options.RecipeName,
        data_root: options.DataRoot,
        out: options.Out,
        split: Annotated[str | None, typer.Option(help="Split of the manifest (default: the recipe's).")] = None,
        shard: options.Shard = None,
        limit: Annotated[int | None, typer.Option(help="Process only the first images of the split.")] = None,
        config: Annotated[
            str | None,
            typer.Option(
                help="Generator: an OpenMMLab config (path, or name of a packaged one), hf:OWNER/NAME, "
                "a folder of transformers, the authors' file of a OneFormer or Mask2Former (path or name), or "
                "python:FILE.py:CLASS. See `vitp generators`."
            ),
        ] = None,
        checkpoint: Annotated[
            str | None,
            typer.Option(
                help="Weights of the generator: a file, hf:OWNER/REPO/FILE or https:…; a folder of transformers has "
                "its own.",
                metavar="FILE",
            ),
        ] = None,
        batch_size: options.BatchSize = None,
        device: options.Device = None,
        changes: options.Changes = None,
        retry_failed: options.RetryFailed = False,
        json: options.Json = False,
    ) -> None:
        """1. Run the frozen generator; store mask logits, class scores and points.

        Only the split that you evaluate needs proposals; training needs none.

        vitp generate-proposals camvid --data-root data/camvid --out runs/camvid

        vitp generate-proposals camvid --data-root data --out run --shard 3/8

        vitp generate-proposals mine --data-root data --out run --config dinat_l
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.files import absolute
        from vitp_pipeline.config.flags import parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import ProposalSettings
        from vitp_pipeline.execution.sharding import choose_shard
        from vitp_pipeline.stages.generate_proposals import generate_proposals

        loaded = load_recipe(recipe)
        flags = {
            "split": split,
            "limit": limit,
            "config": absolute(config),
            "checkpoint": absolute(checkpoint),
            "batch_size": batch_size,
            "device": device,
        }
        settings = loaded.stage(ProposalSettings, **flags | parse_changes(changes))
        with documented(json) as document:
            outcome = generate_proposals(loaded, settings, data_root, out, choose_shard(shard), retry_failed)
            document.give(outcome)
            outcome.report("proposals")
