"""Signals that ask a task to end soon: schedulers send them before they take a machine away, people press Ctrl-C.

Inside `finishing()` the first one is only noted, and the work that asks `stop_wanted()` ends where nothing is lost.
Elsewhere, and for the second one, the program stops at once. Either way it ends with code 75, after Ctrl-C with 130.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from vitp_pipeline.errors import KeyboardStopError, StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
CTRL_C = signal.SIGINT.name
ECHO = 1.0
"""Seconds in which a signal counts as the same as the one before it: schedulers signal whole groups of processes, and
the shell among them passes it on."""

_wanted = ""
_noted_at = 0.0
_depth = 0


@contextlib.contextmanager
def noticing_signals() -> Iterator[None]:
    """Takes the signals while the block runs. Does nothing outside of the main thread, where Python has no signals."""
    global _wanted
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _wanted = ""
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wanted = ""


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Work that looks at `stop_wanted` often enough, and can end in order."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def stop_wanted() -> bool:
    """Whether a signal has asked this process to end."""
    return bool(_wanted)


def stopped(what: str) -> StoppedError:
    """The error with which work ends that was asked to; `what` says what is kept."""
    by, kind = ("Ctrl-C", KeyboardStopError) if _wanted == CTRL_C else (_wanted or "a signal", StoppedError)
    return kind(f"stopped by {by}: {what}", "Run the same command again to go on")


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _wanted, _noted_at
    now, name = time.monotonic(), signal.Signals(number).name
    if _wanted and now - _noted_at < ECHO and name != CTRL_C:
        return
    first, _wanted, _noted_at = not _wanted, name, now
    if _depth and first:
        shown, again = ("Ctrl-C", "Ctrl-C again") if name == CTRL_C else (name, "a second signal")
        _say(f"{shown}: finishing what is being worked on; {again} stops at once")
        return
    if name == CTRL_C:  # noted as well: an interrupt that comes while Python cleans an object up is lost
        raise KeyboardInterrupt
    _say(f"vitp: stopped at once by {name}; finished parts are kept, run the same command again to go on")
    raise SystemExit(StoppedError.exit_code)


def _say(text: str) -> None:
    """Not `print`: the signal may have come in the middle of one."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
