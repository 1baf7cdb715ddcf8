"""A task that was suspended, and taken over, may wake before any of its steps: it changes nothing that is committed.

The lock file alone keeps two tasks apart here, as on a file system without flock, and in an object store: another task
takes the shard over just before the n-th step of the first one, and makes other bytes (as two GPUs do). It commits
them, or has only cleaned up when it is itself stopped; then the first one commits nothing more, either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.run import StageRun, create_or_check
from vitp_pipeline.errors import LockedError, UserError
from vitp_pipeline.execution.runner import run_parts
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.storage import locks, object_lock
from vitp_pipeline.storage.fs_ops import watched
from vitp_pipeline.storage.open_store import Run, open_store

COLUMNS = pa.schema([(name, pa.string()) for name in ("image_id", "status", "error", "by")])
STEPS = 34
"""So many changes of a disk a task makes from the moment that it holds the lock; of a store's objects fewer."""


class Stopped(Exception):
    """What ends a task before it has committed anything."""


class Maker:
    """Makes arrays and rows that say whose they are."""

    def __init__(self, run: StageRun, by: int, stops: bool = False) -> None:
        self.run, self.by, self.stops = run, by, stops

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget) -> pa.Table:
        if self.stops:
            raise Stopped
        writer = ArrayWriter(arrays, self.run.about(shard, part))
        for image in images:
            writer.add(f"x/{image}", np.full((4, 5), self.by), ["y", "x"])
        writer.close()
        rows = [{"image_id": i, "status": "ok", "error": None, "by": str(self.by)} for i in images]
        return pa.Table.from_pylist(rows, COLUMNS)


def begin(of: Run) -> StageRun:
    store = open_store(of)
    return create_or_check(store, store.folder / "proposals", {"stage": "proposals"}, ("a", "b", "c"), 1, 2)


def work(root: Run, by: int, stops: bool = False) -> None:
    run = begin(root)
    with contextlib.suppress(Stopped):
        run_parts(run, [0], lambda: Maker(run, by, stops), "test")


def makers(root: Run) -> list[int]:
    """Who made each part; arrays and rows must be of the same task."""
    run, found = begin(root), []
    for part in range(2):
        rows = run.read_rows(0, part)
        (by,) = set(rows["by"].to_pylist())
        with run.open_arrays(0, part, rows) as arrays:
            assert all((arrays.read(f"x/{image}") == int(by)).all() for image in rows["image_id"].to_pylist())
        found.append(int(by))
    return found


def check(root: Run, ended: UserError | None) -> None:
    assert ended is None or (isinstance(ended, LockedError) and ended.exit_code == 9), ended
    assert verify_run(root).damages == []
    work(root, 3)  # whoever comes next completes what is missing, and nothing else
    assert verify_run(root).damages == [] and set(makers(root)) <= {1, 2, 3}


def check_parts(committed: dict[str, bytes], now: dict[str, bytes], stops: bool) -> None:
    """What was committed when the other one had done its work is as it was; after one that stopped there is no more."""

    def indices(parts: dict[str, bytes]) -> dict[str, bytes]:
        return {name: content for name, content in parts.items() if name.endswith(".parquet")}

    if stops and committed:
        assert indices(now) == indices(committed)
    else:
        assert {name: now.get(name) for name in committed} == committed


@pytest.mark.parametrize("stops", [False, True], ids=["commits", "stops"])
@pytest.mark.parametrize("step", range(STEPS))
def test_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, stops: bool) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(locks, "SETTLE", 0.0)
    begin(tmp_path)
    folder = tmp_path / "proposals/shards/00000"
    count, committed = 0, {}

    def parts() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.glob("part-*") if not p.name.endswith(".tmp")}

    def taken_over(*_: object) -> None:
        nonlocal count
        if (folder / "lock").exists() and (folder / "lock").stat().st_size:
            count += 1
            if count == step + 1:
                (folder / "lock").unlink()  # as whoever has seen no sign of life for a minute
                work(tmp_path, 2, stops)
                committed.update(parts(), taken=b"")

    ended = None
    try:
        with watched(taken_over):
            work(tmp_path, 1)
    except LockedError as error:
        ended = error
    check_parts(committed, parts() | {"taken": b""}, stops)
    check(tmp_path, ended)
    assert count > step or step > 20  # the steps end somewhere


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    monkeypatch.setenv("VITP_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(locks, "STALE", 0.02)
    monkeypatch.setattr(object_lock, "SETTLE", 0.0)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.mark.parametrize("stops", [False, True], ids=["commits", "stops"])
@pytest.mark.parametrize("step", range(24))
def test_in_a_store(store, monkeypatch: pytest.MonkeyPatch, step: int, stops: bool) -> None:
    url, count, committed = "memory://runs/taken", 0, {}
    lock = "/runs/taken/proposals/shards/00000/lock"

    def parts() -> dict[str, bytes]:
        return {key: store.cat_file(key) for key in store.store if "/part-" in key}

    def other() -> None:
        store.rm_file(lock)
        work(url, 2, stops)
        committed.update(parts(), taken=b"")

    for name in ("put_file", "pipe_file", "rm_file", "get_file", "ls"):

        def does(self, *arguments, _does=getattr(type(store), name), **options):
            nonlocal count
            if not committed and store.exists(lock):
                count += 1
                if count == step + 1:
                    other()
            return _does(self, *arguments, **options)

        monkeypatch.setattr(type(store), name, does)
    ended = None
    try:
        work(url, 1)
    except LockedError as error:
        ended = error
    check_parts(committed, parts() | {"taken": b""}, stops)
    check(url, ended)
