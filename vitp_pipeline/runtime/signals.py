"""Handle signals that ask a task to stop: schedulers send them before they take a machine away, people press Ctrl-C.

Inside `finishing()` the first one is only noted, and the work that asks `stop_wanted()` ends where nothing is lost.
Elsewhere, inside `interruptible()`, and for the second one, the program stops at once: the handler raises `StopNow` in
the main thread, and where that is stuck in a library, or the library swallows it, a watching thread ends the process
after `PATIENCE` seconds. Either way it ends with code 75, after Ctrl-C with 130. Once the outcome is decided
(`ignore_signals`), no signal changes the exit code any more.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from vitp_pipeline.errors import KeyboardStopError, StoppedError
from vitp_pipeline.runtime.output import tell_at_once

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
CTRL_C = signal.SIGINT.name
ECHO = 1.0
"""Seconds in which a signal counts as the same as the one before it: schedulers signal whole groups of processes, and
the shell among them passes it on."""
PATIENCE = 5.0
"""Seconds after which a process that was to stop at once, and has not, is ended."""


class StopNow(SystemExit):
    """Raised in the main thread by a signal that stops the program at once."""


_wanted = ""
_noted_at = 0.0
_depth = 0
_decided = False


def stops_now(name: str, now: float, wanted: str, noted_at: float, finishing: bool) -> bool | None:
    """Tell whether a signal stops the program at once; None: it repeats the previous one.

    Args:
        wanted, noted_at: the signal before it, "" = none, and when that came.
        finishing: whether the work that it meets ends in order.
    """
    if wanted and now - noted_at < ECHO and name != CTRL_C:
        return None
    return bool(wanted) or not finishing


@contextlib.contextmanager
def noticing_signals() -> Iterator[None]:
    """Handle the signals while the block runs. Does nothing outside of the main thread, where Python has no signals."""
    global _wanted, _decided
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _wanted, _decided = "", False
    with _watching():
        before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            if not _decided:
                for number, handler in before.items():
                    signal.signal(number, handler)
            _wanted = ""


def ignore_signals() -> None:
    """Ignore signals from now on: the outcome is decided, and Python only needs a moment to exit."""
    global _decided
    _decided = True
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Mark work that checks `stop_wanted` often enough and can stop in order."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


@contextlib.contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Mark work inside `finishing()` that cannot check and keeps nothing: imports, loading a model.

    Args:
        what: is kept if a signal came before.
    Raises:
        StoppedError: one did.
    """
    global _depth
    if stop_wanted():
        raise stopped(what)
    before, _depth = _depth, 0
    try:
        yield
    finally:
        _depth = before


def stop_wanted() -> bool:
    """Tell whether a signal has asked this process to end."""
    return bool(_wanted)


def stopped(what: str) -> StoppedError:
    """Make the error of work that was asked to stop; `what` says what is kept."""
    by, kind = ("Ctrl-C", KeyboardStopError) if _wanted == CTRL_C else (_wanted or "a signal", StoppedError)
    return kind(f"stopped by {by}: {what}", "Run the same command again to continue")


def exit_code(name: str) -> int:
    """Return the exit code of a program that a signal has stopped."""
    return KeyboardStopError.exit_code if name == CTRL_C else StoppedError.exit_code


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _wanted, _noted_at
    name, now = signal.Signals(number).name, time.monotonic()
    verdict = stops_now(name, now, _wanted, _noted_at, _depth > 0)
    if verdict is None:
        return
    _wanted, _noted_at = name, now
    shown, again = ("Ctrl-C", "Ctrl-C again") if name == CTRL_C else (name, "a second signal")
    if not verdict:
        tell_at_once(f"{shown}: finishing the current work; {again} stops at once")
        return
    tell_at_once(f"vitp: stopped at once by {shown}; what is finished is kept, run the same command again to continue")
    raise StopNow(exit_code(name))


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    """Watch signals in a second thread, too: the main thread may be stuck in a library."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # which ends the watcher
        watcher.join()
        os.close(reader)


def _watch(reader: int) -> None:
    wanted, noted_at, due = "", 0.0, math.inf
    while True:
        left = None if due == math.inf else max(0.0, due - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            if not _decided:
                tell_at_once(f"vitp: it did not stop within {PATIENCE:.0f} s, so it was killed")
                os._exit(exit_code(wanted))
            return
        if not (received := os.read(reader, 1)):
            return
        name, now = signal.Signals(received[0]).name, time.monotonic()
        if received[0] in SIGNALS and (verdict := stops_now(name, now, wanted, noted_at, _depth > 0)) is not None:
            wanted, noted_at = name, now
            if verdict:
                due = min(due, now + PATIENCE)
