"""Signals: one is noted where work can end in order; elsewhere, and the second time, the program stops at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp_pipeline.errors import StoppedError
from vitp_pipeline.runtime import signals
from vitp_pipeline.runtime.signals import (
    SIGNALS,
    finishing,
    interruptible,
    noticing_signals,
    stop_wanted,
    stopped,
    stops_now,
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [number for number in SIGNALS if number != signal.SIGINT])
def test_the_first_is_noted_and_the_second_stops(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with noticing_signals(), finishing():
        assert not stop_wanted()
        send(number)
        assert stop_wanted() and signal.Signals(number).name in str(stopped("3 of 9"))
        send(signal.SIGTERM)  # what a scheduler sends to a whole group arrives twice
        assert stop_wanted()
        monkeypatch.setattr(signals, "ECHO", 0.0)
        with pytest.raises(SystemExit) as stop:
            send(number)
        assert stop.value.code == StoppedError.exit_code == 75
    assert not stop_wanted()


def test_the_first_ctrl_c_is_noted_and_the_second_stops() -> None:
    """At once: nobody but a person presses it."""
    with noticing_signals(), finishing():
        send(signal.SIGINT)
        error = stopped("3 of 9")
        assert stop_wanted() and "Ctrl-C" in str(error) and error.exit_code == 130
        with pytest.raises(SystemExit) as stop:
            send(signal.SIGINT)
        assert stop.value.code == 130


def test_an_interrupt_that_python_swallowed_is_not_lost() -> None:
    class Swallowing:
        def __del__(self) -> None:
            send(signal.SIGINT)

    with noticing_signals():
        it = Swallowing()
        del it  # Python prints what comes of it, and goes on
        assert stop_wanted()


def test_outside_of_such_work_it_stops_at_once() -> None:
    with noticing_signals():
        with finishing():
            pass
        with pytest.raises(SystemExit) as stop:
            send(signal.SIGUSR2)
        assert stop.value.code == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_loading_ends_at_once_and_does_not_begin_after_a_signal(number: int, code: int) -> None:
    with noticing_signals(), finishing():
        with pytest.raises(SystemExit) as stop, interruptible("3 of 9"):
            send(number)
        assert stop.value.code == code and stop_wanted()
        with pytest.raises(StoppedError, match="3 of 9") as refused, interruptible("3 of 9"):
            raise AssertionError("it has begun")
        assert refused.value.exit_code == code
    with noticing_signals(), finishing():
        with interruptible(""):
            pass
        send(number)  # once it is loaded a signal is noted again
        assert stop_wanted()


NAMES = st.sampled_from([number.name for number in SIGNALS])


@given(st.lists(st.tuples(NAMES, st.sampled_from((0.0, 0.3, 0.6, 1.5, 5.0)), st.booleans()), max_size=12))
def test_no_row_of_signals_is_only_noted(row: list[tuple[str, float, bool]]) -> None:
    """The first one in work that ends in order is; none is forgotten; what follows at once is an echo, Ctrl-C never."""
    now, wanted, noted_at, stops = 100.0, "", 0.0, []
    for name, pause, orderly in row:
        now += pause
        verdict = stops_now(name, now, wanted, noted_at, orderly)
        stops.append(verdict)
        if verdict is not None:
            wanted, noted_at = name, now
        else:
            assert wanted and pause < signals.ECHO and name != "SIGINT"
    counted = [(verdict, orderly) for verdict, (_, _, orderly) in zip(stops, row, strict=True) if verdict is not None]
    assert [verdict for verdict, _ in counted] == [bool(n) or not orderly for n, (_, orderly) in enumerate(counted)]


def test_handlers_are_given_back_and_other_threads_have_none() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with noticing_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    errors = []

    def work() -> None:
        try:
            with noticing_signals(), finishing():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == [] and [signal.getsignal(number) for number in SIGNALS] == before
