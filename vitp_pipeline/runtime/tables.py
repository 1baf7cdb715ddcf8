"""Tables on standard output: rich's, in which every text is text: no markup, no emoji codes, no control characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table as _Table
from rich.text import Text

from vitp_pipeline.runtime.escaping import escape

Cell = str | Sequence[str]
"""A text, or several lines of it."""


def _text(cell: Cell) -> str:
    return "\n".join(map(escape, [cell] if isinstance(cell, str) else cell))


class Table(_Table):
    """A table to be filled and shown. `options` are those of rich's."""

    def __init__(self, title: str | None = None, caption: str | None = None, **options: Any) -> None:
        title, caption = (None if text is None else escape(text) for text in (title, caption))
        super().__init__(title=title, caption=caption, title_justify="left", caption_justify="left", **options)

    @classmethod
    def open(cls, **options: Any) -> Table:
        """Make a table with one line, below its headers."""
        return cls(box=SIMPLE_HEAD, pad_edge=False, **options)

    @classmethod
    def bare(cls) -> Table:
        """Make a table without lines."""
        return cls(box=None, padding=(0, 2))

    @classmethod
    def headless(cls) -> Table:
        """Make a table without lines and headers."""
        return cls(box=None, padding=(0, 2, 0, 0), show_header=False, show_edge=False, pad_edge=False)

    def column(self, header: Cell = "", **options: Any) -> None:
        """Add a column. `options` are those of rich's `add_column`."""
        self.add_column(_text(header), **options)

    def row(self, *cells: Cell, bold: bool = False) -> None:
        """Add a row."""
        self.add_row(*map(_text, cells), style="bold" if bold else None)

    def show(self, log_width: int | None = None, cut: bool = True) -> None:
        """Print it on standard output.

        Args:
            log_width: characters of a line where that is no terminal; None = as rich has it, 80.
            cut: whether lines end where the screen does.
        """
        console = _console()
        if log_width is not None and not console.is_terminal:
            console.width = log_width
        console.print(self, soft_wrap=not cut)

    def show_framed(self, title: str) -> None:
        """Print it on standard output, in a frame."""
        _console().print(Panel(self, title=Text(escape(title)), title_align="left", border_style="dim"))


def clear_screen() -> None:
    """Clear the terminal; nothing where standard output is none."""
    _console().clear()


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)
