"""vitp doctor"""

from __future__ import annotations

import typer

from vitp_pipeline.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command("doctor")
    def doctor(json: Json = False) -> None:
        """Print versions, devices and available compiled operators. Paste it into a bug report.

        vitp doctor

        vitp doctor --json
        """
        from vitp_pipeline.diagnostics.environment import findings
        from vitp_pipeline.runtime.output import show_json
        from vitp_pipeline.runtime.tables import Table

        if json:
            show_json(dict(findings()), indent=2)
            return
        table = Table(show_header=False)
        for name, finding in findings():
            table.row(name, finding)
        table.show()
