"""vitp status"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json, Run


def register(app: typer.Typer) -> None:
    @app.command("status")
    def status(
        run: Run,
        json: Json = False,
        watch: Annotated[bool, typer.Option("--watch", help="Repeat every 5 seconds until all is done.")] = False,
    ) -> None:
        """Show what is done, running, stopped or missing in a run, and which array tasks to start for the rest.

        vitp status runs/camvid
        """
        from vitp_pipeline.runs.status import print_status, run_status, watch_status

        if watch:
            watch_status(run, as_json=json)
        else:
            print_status(run_status(run), as_json=json)
