"""Locks where the kernel's do not reach: signatures, signs of life, taking over what was left behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.local_runs import create_or_check
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import LockedError
from vitp_pipeline.execution.runner import run_parts
from vitp_pipeline.storage import locks
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.locks import is_locked, locked

fork = multiprocessing.get_context("fork")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.05, "STALE": 0.4, "SETTLE": 0.1}.items():
        monkeypatch.setattr(locks, name, seconds)


def _no_flock(*_: object) -> None:
    raise OSError(errno.ENOSYS, "no locks here")


@pytest.fixture(params=["none", "of one machine", "of all machines"])
def flocks(request: pytest.FixtureRequest, quick, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system's own locks are worth."""
    if request.param == "none":
        monkeypatch.setattr(locks.fcntl, "flock", _no_flock)
    elif request.param == "of one machine":
        monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)  # every task is on another one
    return request.param


def as_machine(name: str) -> None:
    locks._machine = lambda: name


def _hold(path: Path, machine: str, held, leave) -> None:
    as_machine(machine)
    with locked(path):
        held.set()
        leave.wait(20)


def holder(path: Path, machine: str):
    """A task on another machine that holds the lock: (process, what ends it in order)."""
    held, leave = fork.Event(), fork.Event()
    process = fork.Process(target=_hold, args=(path, machine, held, leave))
    process.start()
    assert held.wait(10)
    return process, leave


def test_a_living_owner_is_respected_and_named(tmp_path: Path, flocks: str) -> None:
    path = tmp_path / "lock"
    process, leave = holder(path, "other")
    try:
        assert is_locked(path)
        named = rf"host \S+, process {process.pid}, last heartbeat \d+ s ago"
        with pytest.raises(LockedError, match=named), locked(path):
            pass
        leave.set()
        process.join(10)
        assert not path.exists() and not is_locked(path)
        began = time.monotonic()
        with locked(path):
            assert time.monotonic() - began < locks.STALE  # nothing to wait for
    finally:
        process.kill()


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path, flocks: str, capsys) -> None:
    path = tmp_path / "lock"
    process, _ = holder(path, "other")
    process.kill()
    process.join()
    began = time.monotonic()
    with pytest.raises(LockedError), locked(path, wait=False):  # who does not wait cannot know
        pass
    with locked(path):
        assert time.monotonic() - began >= locks.STALE
        assert f"process {os.getpid()}\n" in path.read_text()
    assert "no heartbeat; taking over" in capsys.readouterr().err and not path.exists()


def test_an_old_lock_needs_no_watching(tmp_path: Path, flocks: str) -> None:
    path = tmp_path / "lock"
    process, _ = holder(path, "other")
    process.kill()
    process.join()
    os.utime(path, (1, 1))
    assert not is_locked(path)
    with locked(path, wait=False):
        pass


def test_a_task_that_failed_leaves_a_trace_that_keeps_nobody_waiting(tmp_path: Path, flocks: str) -> None:
    path = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError
    assert path.exists() and not is_locked(path)
    as_before = locks._machine
    as_machine("other")
    try:
        with locked(path, wait=False):
            pass
    finally:
        locks._machine = as_before


def test_an_owner_that_slept_notices_and_writes_nothing_more(tmp_path: Path, quick, monkeypatch) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", _no_flock)
    monkeypatch.setattr(locks, "BEAT", 60.0)  # as good as suspended
    path = tmp_path / "lock"
    with pytest.raises(LockedError, match="another task has taken over"), locked(path) as lock:
        lock.check()
        process, leave = holder(path, "other")
        try:
            lock.check()
        finally:
            leave.set()
            process.join(10)


def test_a_removed_lock_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(LockedError, match="its lock was removed"), locked(tmp_path / "lock") as lock:
        (tmp_path / "lock").unlink()
        lock.check()


def test_a_temporary_file_that_another_task_cleaned_up(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("x")
        path.unlink()

    with pytest.raises(LockedError, match="while it was being written"):
        write_whole(tmp_path / "file", write)


# ---- two tasks on one shard -----------------------------------------------------------------------------------------


class Maker:
    """Slow enough that tasks meet."""

    def make(self, shard: int, part: int, images, arrays: Path, budget) -> pa.Table:
        writer = ArrayWriter(arrays, {})
        try:
            for image in images:
                time.sleep(0.01)
                writer.add(f"x/{image}", np.full(3, 7), ["x"])
                budget.advance(1)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        rows = [{"image_id": i, "status": "ok", "error": None} for i in images]
        return pa.Table.from_pylist(rows, pa.schema([(n, pa.string()) for n in ("image_id", "status", "error")]))


def _work(run: StageRun, number: int, barrier, codes) -> None:
    as_machine(f"machine {number}")
    barrier.wait()
    try:
        run_parts(run, [0], Maker, "test")
        codes[number] = 0
    except LockedError as error:
        codes[number] = error.exit_code
    except BaseException:
        codes[number] = 1
        raise


@pytest.mark.slow
def test_tasks_that_start_together_leave_one_whole_shard(tmp_path: Path, flocks: str) -> None:
    """Each gets through or notices another; nothing is corrupt, and a rerun completes what is missing."""
    from vitp_pipeline.runs.verify import verify_run

    for round_ in range(3):
        out = tmp_path / str(round_)
        images = tuple(f"i{n}" for n in range(12))
        run = create_or_check(out / "proposals", {"stage": "proposals"}, images, 1, 3)
        barrier, codes = fork.Barrier(3), fork.Array("i", [-1] * 3)
        tasks = [fork.Process(target=_work, args=(run, n, barrier, codes)) for n in range(3)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join(30)
        assert set(codes) <= {0, 9}
        if flocks == "of all machines":
            assert list(codes).count(0) >= 1
        run_parts(run, [0], Maker, "test")
        checked = verify_run(out)
        assert checked.parts == 4 and checked.damages == []
        assert not list(out.rglob("*.tmp")) and not list(out.rglob("lock"))
