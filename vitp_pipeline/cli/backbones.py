"""vitp backbones"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command("backbones")
    def backbones(
        pattern: Annotated[
            str, typer.Argument(help="Name of timm, or a pattern of names such as '*dinov3*'.", metavar="[PATTERN]")
        ] = "*",
        json: Json = False,
    ) -> None:
        """List the models of timm that `backbone` takes: kind, positions, patch size, and licenses of their weights.

        vitp backbones

        vitp backbones '*dinov3*'

        vitp backbones resnet50
        """
        from vitp_pipeline.classifier.backbones.listing import list_backbones, print_backbones

        print_backbones(list_backbones(pattern), as_json=json)
