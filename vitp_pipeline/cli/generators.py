"""vitp generators"""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command("generators", rich_help_panel="Also")
    def generators(json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
        """Which mask generators can run here, how a recipe names them, and what the others lack.

        vitp generators

        vitp generators --json
        """
        from vitp_pipeline.generators.availability import availability, print_availability

        print_availability(availability(), as_json=json)
