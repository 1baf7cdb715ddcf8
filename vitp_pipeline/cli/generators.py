"""vitp generators"""

from __future__ import annotations

import typer

from vitp_pipeline.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command("generators")
    def generators(json: Json = False) -> None:
        """List the mask generators that can run here, how a recipe selects them, and what the others lack.

        vitp generators

        vitp generators --json
        """
        from vitp_pipeline.generators.availability import availability, print_availability

        print_availability(availability(), as_json=json)
