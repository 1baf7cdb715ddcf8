"""The keys of a recipe's tables, as `vitp STAGE --help` shows them."""

from __future__ import annotations

from collections.abc import Iterable


def print_keys(tables: Iterable[str]) -> None:
    """Print a panel for each table: key, default, values, meaning."""
    from vitp_pipeline.config.reference import rows_of
    from vitp_pipeline.runtime.tables import Table

    for name in tables:
        grid = Table.headless()
        grid.column(style="bold cyan", no_wrap=True)
        grid.column()
        for row in rows_of(name).values():
            default = "" if row.default == "required" else "; default: "
            about = f"({row.takes}{default}{row.default.strip('`')})"
            grid.row(row.key, f"{row.help} {about}")
        grid.show_framed(f"Keys of [{name}], in the recipe or as --set KEY=VALUE")
