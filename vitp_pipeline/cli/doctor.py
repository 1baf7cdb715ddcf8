"""vitp doctor"""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    @app.command("doctor", rich_help_panel="Also")
    def doctor() -> None:
        """Versions, devices, and which compiled operators are there. Paste it into a bug report."""
        from rich.console import Console
        from rich.table import Table

        from vitp_pipeline.doctor import findings

        table = Table(show_header=False)
        for name, finding in findings():
            table.add_row(name, finding)
        Console(highlight=False).print(table)
