"""Progress for people: a bar on a terminal, one plain line now and then in a log."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from vitp_pipeline.runtime.escaping import escape
from vitp_pipeline.runtime.output import is_terminal, tell

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_EVERY = 15.0
"""Seconds between lines when the output is not a terminal."""

_hushed = False


def hush(wanted: bool = True) -> None:
    """Show no progress and say nothing from now on; `hush(False)` ends that."""
    global _hushed
    _hushed = wanted


def is_hushed() -> bool:
    """Tell if messages are off."""
    return _hushed


def device_memory() -> str:
    """Describe the current GPU's memory in use by all processes, like "3.2 of 79.1 GB"; "" where none is used.

    Never imports torch, nor wakes a GPU.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return ""
    free, total = cuda.mem_get_info()
    return f"{(total - free) / 1e9:.1f} of {total / 1e9:.1f} GB"


class Progress:
    """Counts units of work. Made by `progress()`."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self._began, self._last = 0, time.monotonic(), time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report `count` finished units; `note` is shown next to them (such as a loss)."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= LINE_EVERY or (count and self.done == self.total):
            self._last = now
            rate = max(self.done, 1e-9) / max(now - self._began, 1e-9)
            left = (self.total - self.done) / rate
            tail = "".join(f", {word}" for word in (note, device_memory()) if word)
            say(f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.2f}/s, {left:.0f} s left{tail}")


class _Bar(Progress):
    def __init__(self, title: str, total: int, unit: str, bar: RichProgress, task: TaskID | None = None) -> None:
        super().__init__(title, total, unit)
        self._bar = bar
        self._task = bar.add_task(escape(title), total=total, note="", rate="") if task is None else task

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        rate = f"{self.done / max(time.monotonic() - self._began, 1e-9):.2f} {self.unit}/s"
        beside = "  ".join(word for word in (escape(note), device_memory()) if word)
        self._bar.update(self._task, advance=count, note=beside, rate=rate)


class _Silent(Progress):
    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count


@contextmanager
def progress(title: str, total: int, unit: str = "images", shown: bool = True) -> Iterator[Progress]:
    """Make a progress display for `total` units, on standard error; if not `shown`, or if messages are off, it only
    counts.
    """
    if not shown or _hushed:
        yield _Silent(title, total, unit)
        return
    if not is_terminal(2):
        yield Progress(title, total, unit)
        return
    if _view is not None and _view.bar is not None:
        yield _view.row(title, total, unit)
        return
    with _rich_progress(transient=True) as bar:
        yield _Bar(title, total, unit, bar)


class StagesView:
    """One display of several stages, a row each: while it is open, `progress` fills the row of the stage at work.

    In a log, where lines cannot be rewritten, a line announces every stage.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.bar = names, None if _hushed or not is_terminal(2) else _rich_progress(transient=False)
        self._rows: dict[str, Any] = {}
        self._current = ""

    def __enter__(self) -> StagesView:
        global _view
        _view = self
        if self.bar is not None:
            self.bar.start()
            self._rows = {n: self.bar.add_task(n, start=False, total=None, note="", rate="") for n in self.names}
        return self

    def __exit__(self, *_: object) -> None:
        global _view
        _view = None
        if self.bar is not None:
            self.bar.stop()

    def begin(self, name: str) -> None:
        """Work on a stage from now on."""
        self._current = name
        if self.bar is None:
            say(f"stage {self.names.index(name) + 1} of {len(self.names)}: {name}")
        else:
            self.bar.start_task(self._rows[name])

    def end(self) -> None:
        """Mark the row of the stage as done, also where there was nothing to do."""
        if self.bar is not None:
            (task,) = [task for task in self.bar.tasks if task.id == self._rows[self._current]]
            total = task.total or 1
            self.bar.update(task.id, total=total, completed=total, note="done")
            self.bar.stop_task(task.id)

    def row(self, title: str, total: int, unit: str) -> Progress:
        """Count units in the row of the stage at work."""
        assert self.bar is not None
        task = self._rows[self._current]
        self.bar.reset(task, total=total)
        return _Bar(title, total, unit, self.bar, task)


_view: StagesView | None = None


def _rich_progress(transient: bool) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    about = TextColumn("{task.description}", markup=False, style="progress.description")
    rate, note = (TextColumn(f"{{task.fields[{field}]}}", markup=False) for field in ("rate", "note"))
    columns = (about, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), note)
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    return RichProgress(*columns, console=console, transient=transient)


def counted(count: int, thing: str) -> str:
    """Format a count with its noun: "1 image", "2 images"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def say(text: str) -> None:
    """Print one line on standard error, for the terminal or the log, unless messages are off."""
    if not _hushed:
        tell(text)


_quieting = threading.Lock()
_quieted: list[logging.Logger] = []
_before = ExitStack()


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Hide warnings, and log lines of a library below ERROR, that users of vitp cannot act on.

    Filters of warnings are the process's: of several threads in here the first one in sets them, and the last one out
    sets them back.
    """
    with _quieting:
        if not _quieted:
            _before.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quieted.append(logger)
        if _quieted.count(logger) == 1:
            _before.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _quieting:
            _quieted.remove(logger)
            if not _quieted:
                _before.close()
