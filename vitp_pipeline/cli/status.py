"""vitp status"""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command("status", rich_help_panel="Also")
    def status(
        run: Annotated[str, typer.Argument(help="A run directory.", metavar="RUN")],
        json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    ) -> None:
        """What of a run is done, what is missing, and which array tasks would make the rest.

        vitp status runs/camvid
        """
        from pathlib import Path

        from vitp_pipeline.stages.status import print_status, run_status

        print_status(run_status(Path(run)), as_json=json)
