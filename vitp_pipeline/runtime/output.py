"""All output of the program: standard output for results, standard error for messages.

Everything printed goes through `escaping`, and printing never ends the work: a reader that is gone, a full disk or a
closed stream is noted in `lost`, and the program's exit code says it (docs/run-directory.md). Nothing else in the
package prints (`tests/runtime/test_door.py`); what libraries print passes the streams of `guard_streams`.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from vitp_pipeline.runtime.escaping import escape, escape_lines, escape_stream, to_json

lost: dict[str, str] = {}
"""Streams of which something could not be written, and why."""
_STREAMS = {1: "standard output", 2: "standard error"}
_aliases: dict[str, str] = {}


def alias(folder: str, name: str) -> None:
    """From now on `name` is shown in place of `folder`, as a run's URL in place of its scratch folder."""
    _aliases[folder] = name


def with_aliases(text: object) -> str:
    """Replace folders by their aliases in a text for people."""
    line = str(text)
    for folder, name in _aliases.items():
        line = line.replace(folder, name)
    return line


def show(text: object = "") -> None:
    """Print one line on standard output: a result."""
    _write(1, escape(with_aliases(text), None) + "\n")


def show_lines(text: str) -> None:
    """Print text of several lines on standard output, such as a script."""
    _write(1, escape_lines(with_aliases(text)))


def show_json(content: Any, **options: Any) -> None:
    """Print a JSON document on standard output. `options` are those of `json.dumps`."""
    text = to_json(content, **options)
    for folder, name in _aliases.items():
        text = text.replace(to_json(folder)[1:-1], to_json(name)[1:-1])
    _write(1, text + "\n")


def tell(text: object) -> None:
    """Print one line on standard error, for the terminal or the log."""
    _write(2, escape(with_aliases(text)) + "\n")


def tell_at_once(text: str) -> None:
    """Print one line on standard error from a signal handler, possibly in the middle of another line."""
    with contextlib.suppress(OSError):
        os.write(2, f"{escape(text)}\n".encode())


def is_terminal(number: int) -> bool:
    """Tell whether standard output (1) or standard error (2) is a terminal."""
    stream = _stream(number)
    return stream is not None and not stream.closed and stream.isatty()


@contextlib.contextmanager
def results_apart() -> Iterator[None]:
    """Redirect what libraries print on standard output to standard error, so that stdout holds one document."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def guard_streams() -> None:
    """Give this process standard streams that never fail, and that write out what a terminal would act on.

    Streams that were replaced (by a test, a notebook) are left alone.
    """
    for number in (0, 1, 2):  # a file that is opened later must not become a standard stream
        try:
            os.fstat(number)
        except OSError as error:
            if number:
                _closed[number] = error.strerror or str(error)
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _Guarded(1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _Guarded(2)


def flush() -> None:
    """Flush both streams."""
    for number in _STREAMS:
        _write(number, "")


_closed: dict[int, str] = {}
"""Streams that were closed when the program started."""


class _Descriptor(io.FileIO):
    """Standard stream's descriptor; failed writes are recorded, not raised."""

    def write(self, content: Any, /) -> int:
        number, left = self.fileno(), memoryview(content).cast("B")
        size = len(left)
        if number in _closed and size:
            lost.setdefault(_STREAMS[number], _closed[number])
        try:
            while left:
                try:
                    left = left[os.write(number, left) :]
                except BlockingIOError:  # a pipe that does not block, and whose reader is slow
                    select.select([], [number], [])
        except OSError as error:
            lost.setdefault(_STREAMS[number], error.strerror or str(error))
        return size


class _Guarded(io.TextIOWrapper):
    """A standard stream in place of Python's own."""

    def __init__(self, number: int) -> None:
        own, descriptor = _stream(number), _Descriptor(number, "w", closefd=False)
        by_line = number == 2 or descriptor.isatty()
        encoding = "utf-8" if own is None else own.encoding
        super().__init__(io.BufferedWriter(descriptor), encoding, "backslashreplace", line_buffering=by_line)

    def write(self, text: str, /) -> int:
        super().write(escape_stream(text, self.isatty()))
        return len(text)


def _stream(number: int) -> TextIO | None:
    return sys.stdout if number == 1 else sys.stderr


def _write(number: int, text: str) -> None:
    stream = _stream(number)
    if stream is None:  # there was none when Python started, and this is not the program's own process
        return
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        lost.setdefault(_STREAMS[number], getattr(error, "strerror", None) or str(error))
