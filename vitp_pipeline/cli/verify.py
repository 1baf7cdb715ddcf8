"""vitp verify"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import Run


def register(app: typer.Typer) -> None:
    @app.command("verify", rich_help_panel="Clusters")
    def verify(
        run: Run,
        repair: Annotated[
            bool, typer.Option("--repair", help="Remove the bad parts, so that a rerun of their stage makes them anew.")
        ] = False,
    ) -> None:
        """Read every committed file of a run again, and name those that are not as they were written.

        Compares checksums, rows and images. Ends with code 6 when something is damaged.

            vitp verify runs/camvid

            vitp verify runs/camvid --repair
        """
        from vitp_pipeline.cluster.verify import report, verify_run

        report(run, verify_run(run), repair)
