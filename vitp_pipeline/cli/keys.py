"""The keys of a recipe's tables, as `vitp STAGE --help` shows them."""

from __future__ import annotations

from collections.abc import Iterable


def print_keys(tables: Iterable[str]) -> None:
    """Print a panel for each table: key, default, values, meaning."""
    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    from vitp_pipeline.config.reference import rows_of
    from vitp_pipeline.config.settings import TABLES

    console = Console(highlight=False)
    for name in tables:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="bold cyan", no_wrap=True)
        grid.add_column()
        for row in rows_of(TABLES[name]):
            unit = f"; {row.unit}" if row.unit not in ("", "integer") else ""
            default = "" if row.default == "required" else "; default: "
            about = f"({row.takes}{unit}{default}{row.default.strip('`')})"
            grid.add_row(row.key, f"{escape(row.help)} [dim]{escape(about)}[/]")
        title = escape(f"Keys of [{name}], in the recipe or as --set KEY=VALUE")
        console.print(Panel(grid, title=title, title_align="left", border_style="dim"))
