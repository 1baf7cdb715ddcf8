"""vitp verify"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json, Run


def register(app: typer.Typer) -> None:
    @app.command("verify")
    def verify(
        run: Run,
        repair: Annotated[
            bool,
            typer.Option(
                "--repair", help="Restore files from copies, and remove damaged parts so that a rerun makes them again."
            ),
        ] = False,
        json: Json = False,
    ) -> None:
        """Check every committed file of a run against its checksum, and list damaged ones.

        Compares checksums, rows and images. Ends with code 6 when something is damaged.

        vitp verify runs/camvid

        vitp verify runs/camvid --repair
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.runs.repair import repair as repair_all
        from vitp_pipeline.runs.verify import print_damages, report, verify_run

        with documented(json) as document:
            checked = verify_run(run)
            if not json:
                print_damages(checked.damages)
            left = repair_all(checked.damages) if repair else None
            damages = [
                {"path": d.path, "reason": d.reason, "removed": left is not None and d not in left}
                for d in checked.damages
            ]
            document.give(parts=checked.parts, damages=damages)
            report(run, checked, left)
