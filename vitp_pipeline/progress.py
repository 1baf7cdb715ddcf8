"""Progress for people: a bar on a terminal, one plain line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LINE_EVERY = 15.0
"""Seconds between lines when the output is not a terminal."""


class Progress:
    """Counts units of work. Made by `progress()`."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self._began, self._last = 0, time.monotonic(), time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Reports `count` finished units; `note` is shown beside them (a loss, say)."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= LINE_EVERY or self.done == self.total:
            self._last = now
            rate = max(self.done, 1e-9) / max(now - self._began, 1e-9)
            left = (self.total - self.done) / rate
            tail = f", {note}" if note else ""
            say(f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.2f}/s, {left:.0f} s left{tail}")


class _Bar(Progress):
    def __init__(self, title: str, total: int, unit: str, bar: object) -> None:
        super().__init__(title, total, unit)
        self._bar = bar
        self._task = bar.add_task(title, total=total, note="")  # type: ignore[attr-defined]

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self._bar.update(self._task, advance=count, note=note)  # type: ignore[attr-defined]


class _Silent(Progress):
    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count


@contextmanager
def progress(title: str, total: int, unit: str = "images", shown: bool = True) -> Iterator[Progress]:
    """A progress display for `total` units, on standard error; not `shown`, it only counts."""
    if not shown:
        yield _Silent(title, total, unit)
        return
    if not sys.stderr.isatty():
        yield Progress(title, total, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    note = TextColumn("{task.fields[note]}")
    with RichProgress(*columns, note, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(title, total, unit, bar)


def say(text: str) -> None:
    """One line for the person at the terminal or the log, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Hides warnings, and what a library's logger says below an error: a user of ours cannot act on them."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
