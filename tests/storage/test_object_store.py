"""Runs on a store, with fsspec's store in memory: what holds of a folder holds there too."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import pytest

from tests.execution.test_runner import Maker, content, ids, work
from vitp_pipeline.artifacts.run import StageRun, create_or_check, open_run
from vitp_pipeline.errors import LockedError, StoppedError, StorageError, UsageError
from vitp_pipeline.execution.runner import Outcome
from vitp_pipeline.runs.gc import collect
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.status import run_status
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.runtime import signals
from vitp_pipeline.runtime.output import with_aliases as shown
from vitp_pipeline.storage import locks, object_lock, object_store
from vitp_pipeline.storage.object_client import ObjectClient
from vitp_pipeline.storage.object_store import ObjectStore
from vitp_pipeline.storage.open_store import open_store
from vitp_pipeline.storage.run_store import LocalStore, RunStore

URL = "memory://runs/toy"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """The objects of the runs in memory; waiting for locks takes no time."""
    monkeypatch.setenv("VITP_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(locks, "STALE", 0.02)
    monkeypatch.setattr(object_lock, "SETTLE", 0.0)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def anew() -> RunStore:
    """The run as a new process sees it."""
    return open_store(URL)


def new_run(store: RunStore, count: int, shards: int, part_size: int = 2) -> StageRun:
    return create_or_check(store, store.folder / "proposals", {"stage": "t"}, ids(count), shards, part_size)


def toy(store: RunStore) -> StageRun:
    return new_run(store, 7, 2)


def small(store: RunStore) -> StageRun:
    """One shard of two parts."""
    return new_run(store, 3, 1)


def make(maker: Maker, shards: list[int] | None = None, run: Callable[[RunStore], StageRun] = toy) -> Outcome:
    return work(run(anew()), maker, shards)


def objects(fs: fsspec.AbstractFileSystem) -> dict[str, bytes]:
    """Of the stage's results, as `content` has those of a folder; a task that is killed last leaves its lock, too."""
    found = {k.removeprefix("/runs/toy/proposals/"): fs.cat_file(k) for k in fs.store}
    return {
        k: v
        for k, v in found.items()
        if not k.startswith(("log/", "run.json", "copies.json")) and not k.endswith("lock")
    }


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    run = toy(LocalStore(tmp_path))
    work(run, Maker())
    return content(run)


def test_a_store_holds_what_a_folder_would(store, expected: dict[str, bytes]) -> None:
    assert make(Maker()).made == 7
    assert objects(store) == expected
    done = make(maker := Maker())
    assert (done.made, done.cached, maker.calls) == (0, 7, [])


class Killed(BaseException):
    """Nothing catches it, and after it nothing reaches the store: as after kill -9."""


REQUESTS = ("put_file", "pipe_file", "rm_file", "get_file", "ls")


def kill_at(monkeypatch: pytest.MonkeyPatch, fs, moment: int, names: Sequence[str] = REQUESTS) -> list[str]:
    """The store's calls from the n-th on are as of a dead process; n counts twice, before a call and after it."""
    calls: list[str] = []

    def dying(name: str):
        does = getattr(type(fs), name)

        def call(self, *arguments, **options):
            calls.append(f"before {name}")
            if len(calls) > moment:
                raise Killed
            answer = does(self, *arguments, **options)
            calls.append(f"after {name}")
            if len(calls) > moment:
                raise Killed
            return answer

        monkeypatch.setattr(type(fs), name, call)

    for name in names:
        dying(name)
    return calls


def test_killed_before_and_after_every_request(store, tmp_path: Path, monkeypatch) -> None:
    """Started again it ends with the same objects; what was committed is not made again."""
    work(plain := small(LocalStore(tmp_path)), Maker())
    expected = content(plain)
    with monkeypatch.context() as patch:
        calls = kill_at(patch, store, 10_000)
        make(Maker(), run=small)
    assert len(calls) > 30 and objects(store) == expected
    for moment in range(len(calls)):
        store.store.clear()
        with monkeypatch.context() as patch:
            kill_at(patch, store, moment)
            with pytest.raises(Killed):
                make(Maker(), run=small)
        marks = {k: store.cat_file(k) for k in store.store if k.endswith(".parquet") or k.endswith("done.json")}
        make(maker := Maker(), run=small)
        assert objects(store) == expected, moment
        assert len(maker.calls) == 2 - sum(k.endswith(".parquet") for k in marks)
        assert marks == {k: store.cat_file(k) for k in marks}


def test_without_its_mark_nothing_is_done(store, expected: dict[str, bytes]) -> None:
    make(Maker())
    store.rm_file("/runs/toy/proposals/shards/00001/part-0000.parquet")
    store.rm_file("/runs/toy/proposals/shards/00001/done.json")
    store.rm_file("/runs/toy/proposals/shards/00000/done.json")
    assert [toy(anew()).finished(shard) for shard in (0, 1)] == [False, False]
    make(maker := Maker())
    assert [call[:2] for call in maker.calls] == [(1, 0)] and objects(store) == expected


def test_a_stopped_part_goes_on_from_its_partial_part(store, expected: dict[str, bytes], monkeypatch) -> None:
    class Slow(Maker):
        def make(self, shard, part, images, arrays, budget):
            monkeypatch.setattr(signals, "_wanted", "SIGTERM")
            return super().make(shard, part, images[:1], arrays, budget)

    for done in range(3):
        monkeypatch.setattr(signals, "_wanted", "")
        with pytest.raises(StoppedError):
            make(Slow())
        kept = {key.rpartition("/")[2] for key in store.store if "/shards/00000/" in key}
        if done == 0:
            assert kept == {"_partial-0000.parquet", "_partial-0000.zarr.zip", "lock"}
    monkeypatch.setattr(signals, "_wanted", "")
    make(Maker())
    assert objects(store) == expected


def test_two_tasks_on_a_shard(store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STALE", 60.0)
    first, other = toy(anew()), toy(anew())
    path = other.shard_folder(0) / "lock"
    with first.store.locked(first.shard_folder(0) / "lock") as lock:
        assert other.store.is_locked(path)
        refused = pytest.raises(LockedError, match=f"at work here .*process {os.getpid()}")
        with refused, other.store.locked(path, wait=False):
            pass
        assert [call[:2] for call in _made_by(other, [1])] == [(1, 0), (1, 1)]
        lock.check()


def _made_by(run: StageRun, shards: list[int]) -> list[tuple]:
    maker = Maker()
    work(run, maker, shards)
    return maker.calls


def test_a_lock_is_taken_over(store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it shows no sign of life, at once if its process was of this machine and is gone; its owner, if it wakes,
    commits nothing.
    """
    first, second = toy(anew()), toy(anew())
    path = second.shard_folder(0) / "lock"
    taken = pytest.raises(LockedError, match="another task has taken over")
    with taken, first.store.locked(first.shard_folder(0) / "lock") as suspended, second.store.locked(path):
        suspended.check()
    monkeypatch.setattr(locks, "STALE", 1e6)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    dead = b"host h, process %d\nmachine %s token t beat 000000001\n" % (child, object_lock._machine().encode())
    store.pipe_file("/runs/toy/proposals/shards/00000/lock", dead)
    with second.store.locked(path):
        pass
    assert not second.store.is_locked(path)


def test_beats_keep_a_lock(store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STALE", 0.5)
    monkeypatch.setattr(locks, "BEAT", 0.02)
    run = toy(anew())
    path = run.shard_folder(0) / "lock"
    with run.store.locked(path), pytest.raises(LockedError, match="at work here"), run.store.locked(path):
        pass
    assert not run.store.list(path.parent)


def test_messages_name_the_url(store) -> None:
    shard = anew().folder / "proposals/shards/00000"
    assert shown(f"{shard}: damaged") == f"{URL}/proposals/shards/00000: damaged"


def test_status_verify_and_gc(store) -> None:
    make(Maker(), [0])
    stale = "/runs/toy/proposals/shards/00001/part-0000-0123456789ab.zarr.zip"
    store.pipe_file(stale, b"of a killed task")
    (entry,) = run_status(anew())
    assert (entry["images"], entry["shards_done"], entry["missing"], entry["stopped"]) == (3, 1, "1", [1])
    assert entry["folder"] == f"{URL}/proposals" and entry["images_per_second"]
    found = collect(anew())
    assert [shown(path) for path, _ in found] == [f"memory:/{stale}"]
    assert not store.exists(stale) and collect(anew()) == []
    make(Maker())
    assert verify_run(anew()).damages == []
    (arrays,) = (key for key in store.store if "00001/part-0001-" in key)
    store.pipe_file(arrays, b"damaged")
    (damage,) = verify_run(anew()).damages
    assert shown(damage.path) == f"memory:/{arrays}"
    assert repair([damage]) == []
    assert not store.exists("/runs/toy/proposals/shards/00001/part-0001.parquet")
    make(maker := Maker())
    assert [call[:2] for call in maker.calls] == [(1, 1)]


def test_scratch_stays_small_and_goes(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "ARCHIVES_KEPT", 2)
    make(Maker())
    scratch = tmp_path / "scratch"
    assert not list(anew().folder.rglob("*.zarr.zip"))
    run = open_run(mine := anew(), mine.folder / "proposals")
    for shard in range(2):
        for name in mine.list(run.shard_folder(shard)):
            assert mine.fetch(run.shard_folder(shard) / name).exists()
    assert len(list(run.folder.rglob("*.zarr.zip"))) == 2
    old = scratch / "vitp-run-of-a-killed-process"
    old.mkdir()
    (old / "held").touch()
    anew()
    assert not old.exists() and run.folder.exists()  # this process lives


def test_requests_of_a_part(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/cluster.md says that a part costs."""

    def calls(count: int) -> Counter[str]:
        store.store.clear()
        with monkeypatch.context() as patch:
            made = kill_at(patch, store, 10_000, (*REQUESTS, "cat_file"))
            asks = ObjectClient.is_object
            patch.setattr(ObjectClient, "is_object", lambda *names: (made.append("before asking"), asks(*names))[1])
            work(new_run(anew(), count, 1, 1), Maker())
        return Counter(call.removeprefix("before ") for call in made if call.startswith("before"))

    part = calls(5) - calls(4)
    # arrays and log; index made; index and partial part asked for; the lock looked at twice; arrays listed; a partial
    # part removed
    assert part == {"put_file": 2, "pipe_file": 1, "asking": 2, "cat_file": 2, "ls": 1, "rm_file": 2}


def test_urls(tmp_path: Path, store, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, folder in (
        ("runs/a", "runs/a"),
        ("file:///data/a%20b", "/data/a b"),
        ("~/a", str(Path("~/a").expanduser())),
    ):
        assert isinstance(open_store(text), LocalStore) and open_store(text).folder == Path(folder)
    opened = open_store(f"{URL}/")
    assert isinstance(opened, ObjectStore) and opened.url == URL and open_store(opened) is opened
    with pytest.raises(UsageError, match="nosuch"):
        open_store("nosuch://bucket/run")
    with pytest.raises(UsageError, match="names no bucket or folder"):
        open_store("s3://")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # where another test has used it
    with pytest.raises(UsageError, match=r'pip install "vitp-pipeline\[s3\]"'):
        open_store("s3://bucket/run")


def test_what_a_store_refuses_is_one_line(store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy(anew())

    def refuse(error: Exception):
        def refused(*_, **__):
            raise error

        return refused

    for error, what in ((PermissionError("Access Denied"), "refuses"), (ConnectionError("reset"), "does not answer")):
        monkeypatch.setattr(type(store), "put_file", refuse(error))
        with pytest.raises(StorageError, match=what) as raised:
            work(run, Maker())
        assert raised.value.exit_code == 8 and "\n" not in str(raised.value)
        assert shown(str(raised.value)).startswith(f"{URL}/")
