"""vitp info"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command("info")
    def info(
        recipe: Annotated[
            str | None, typer.Argument(help="Recipe; without one, give --backbone or --config.", metavar="[RECIPE]")
        ] = None,
        size: Annotated[
            str | None, typer.Option(help="Input size of the classifier (default: the recipe's).", metavar="HxW")
        ] = None,
        points: Annotated[
            int | None,
            typer.Option(min=1, max=10**6, help="Points per forward pass (default: one per query).", metavar="N"),
        ] = None,
        crop: Annotated[
            str | None,
            typer.Option(help="Input size of the generator (default: its training crop).", metavar="HxW"),
        ] = None,
        backbone: Annotated[
            str | None, typer.Option(help="Name of a timm ViT, in place of the recipe's.", metavar="NAME")
        ] = None,
        classes: Annotated[
            int | None, typer.Option(min=1, max=10**6, help="Number of classes, without a recipe.", metavar="K")
        ] = None,
        config: Annotated[str | None, typer.Option(help="Generator, in place of the recipe's: as in a recipe.")] = None,
        data_root: Annotated[
            Path | None,
            typer.Option("--data-root", help="Folder of the dataset, if the recipe's config is in it.", metavar="DIR"),
        ] = None,
        json: Json = False,
    ) -> None:
        """Count parameters and FLOPs of generator and classifier. Needs no weights.

        vitp info camvid --data-root data/camvid

        vitp info --backbone vit_base_patch14_dinov2 --classes 150 --points 250
        """
        from vitp_pipeline.diagnostics.model_cost import costs_of, print_costs

        print_costs(costs_of(recipe, size, points, crop, backbone, classes, config, data_root), as_json=json)
