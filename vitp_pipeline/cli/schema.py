"""vitp schema"""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command("schema")
    def schema(
        manifest: Annotated[bool, typer.Option("--manifest", help="Print the schema of manifests.")] = False,
        profile: Annotated[
            bool, typer.Option("--profile", help="Print the schema of the cluster profiles that `submit` reads.")
        ] = False,
    ) -> None:
        """Print the JSON Schema of recipes, from which editors complete keys and check values.

        vitp schema > vitp.schema.json

        Then start a recipe with the line `#:schema ./vitp.schema.json` (Taplo, Even Better TOML).
        """
        from vitp_pipeline.runtime.output import show_json

        if manifest:
            from vitp_pipeline.datasets.manifest import manifest_schema as made
        elif profile:
            from vitp_pipeline.cluster.profile import profile_schema as made
        else:
            from vitp_pipeline.config.reference import recipe_schema as made
        show_json(made(), indent=2)
