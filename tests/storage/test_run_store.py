"""One contract for every kind of store: what a stage may take for granted of a run, wherever that lies."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from vitp_pipeline.errors import CorruptError, LockedError, StorageError
from vitp_pipeline.storage.open_store import open_store
from vitp_pipeline.storage.run_store import LocalStore, RunStore

Opener = Callable[[], RunStore]
FILE, OTHER = "proposals/shards/00000/done.json", "proposals/shards/00000/part-0000.parquet"


@pytest.fixture(params=["folder", "objects"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Opens the same run as another process would."""
    if request.param == "folder":
        yield lambda: open_store(tmp_path / "run")
        return
    monkeypatch.setenv("VITP_SCRATCH", str(tmp_path / "scratch"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield lambda: open_store(f"memory://runs/{tmp_path.name}")
    fs.store.clear()


def write(store: RunStore, name: str, content: bytes = b"x") -> Path:
    store.write(store.folder / name, content)
    return store.folder / name


def read(store: RunStore, name: str) -> bytes:
    return store.fetch(store.folder / name).read_bytes()


@pytest.mark.parametrize("name", [FILE, OTHER, "proposals/run.json", "digests.json", "classifier/a/model.safetensors"])
def test_what_one_process_writes_another_finds(opener: Opener, name: str) -> None:
    first, second = opener(), opener()
    assert not second.exists(second.folder / name)
    for content in (b"old", b"", b"newer and longer"):
        write(first, name, content)
        assert first.exists(first.folder / name) and second.exists(second.folder / name)
        assert read(opener(), name) == content
    second.remove(second.folder / name)
    third = opener()
    assert not second.exists(second.folder / name) and not third.exists(third.folder / name)


def test_questions_bring_nothing_here(opener: Opener) -> None:
    write(opener(), FILE)
    store = opener()
    before = sorted(store.folder.rglob("*"))
    path = store.folder / FILE
    assert store.exists(path) and not store.exists(path.with_name("absent"))
    assert store.list(path.parent) == {"done.json": 1} and store.folders(store.folder) == ["proposals"]
    assert not store.is_locked(path.with_name("lock"))
    assert sorted(store.folder.rglob("*")) == before
    assert store.fetch(path) == path and path.read_bytes() == b"x"


def test_fetching_what_is_not_there_is_no_error(opener: Opener) -> None:
    store = opener()
    for name in (FILE, "proposals", "proposals/run.json"):
        assert not store.fetch(store.folder / name).is_file()
    write(store, FILE)
    again = opener()
    again.fetch_all(again.folder / name for name in (FILE, OTHER))
    assert read(again, FILE) == b"x" and not (again.folder / OTHER).exists()


def test_a_file_is_published_whole_or_not_at_all(opener: Opener) -> None:
    """Whatever ends the writing, at any moment: others see what was there before."""
    write(opener(), FILE, b"before")
    store = opener()
    seen = []

    def fill(unfinished: Path) -> None:
        unfinished.write_bytes(b"after, half of it")
        other = opener()
        seen.append(read(other, FILE))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(store.folder / FILE, fill)
    other = opener()
    assert seen == [b"before"] and read(other, FILE) == b"before"
    assert list(other.list((other.folder / FILE).parent)) == ["done.json"]
    store.write(store.folder / FILE, lambda unfinished: unfinished.write_bytes(b"after"))
    assert read(opener(), FILE) == b"after"


def test_of_several_that_create_a_file_one_wins(opener: Opener) -> None:
    stores = [opener() for _ in range(4)]
    won = [store.create(store.folder / FILE, str(number)) for number, store in enumerate(stores)]
    assert won == [True, False, False, False] and read(opener(), FILE) == b"0"
    assert all(read(store, FILE) == b"0" for store in stores)  # who lost sees what won


def test_removing_twice_is_removing_once(opener: Opener) -> None:
    store = opener()
    path = write(store, FILE)
    for _ in range(3):
        store.remove(path)
        other = opener()
        assert not store.exists(path) and not path.exists() and not other.exists(other.folder / FILE)


def test_lists_are_sorted_and_hold_files_alone(opener: Opener) -> None:
    names = ["b", "a", "c10", "c9", "Z", "é", "_", "0"]
    for number, name in enumerate(names):
        write(opener(), f"exports/coco-0123456789ab/results/{name}", b"x" * number)
        write(opener(), f"exports/coco-0123456789ab/results/in-{name}/file")
    store = opener()
    folder = store.folder / "exports/coco-0123456789ab/results"
    assert list(store.list(folder).items()) == sorted((name, number) for number, name in enumerate(names))
    assert list(store.folders(folder)) == sorted(f"in-{name}" for name in names)
    assert store.list(folder / "absent") == {} and list(store.folders(folder / "absent")) == []


def test_what_is_released_is_still_in_the_run(opener: Opener) -> None:
    store = opener()
    path = write(store, OTHER, b"arrays")
    store.release(path)
    assert store.exists(path) and read(store, OTHER) == b"arrays"


def test_a_lock_keeps_others_out(opener: Opener) -> None:
    one, two = opener(), opener()
    mine, theirs = (store.folder / "proposals/shards/00000/lock" for store in (one, two))
    with one.locked(mine) as lock:
        assert two.is_locked(theirs)
        with pytest.raises(LockedError, match="another task is at work here"), two.locked(theirs, wait=False):
            pass
        lock.check()
    assert not two.is_locked(theirs) and not two.exists(theirs)
    with pytest.raises(KeyError), two.locked(theirs):
        raise KeyError
    assert one.list(mine.parent).keys() == {"lock"} and not one.is_locked(mine)  # a trace for `vitp status`
    two.remove(theirs)
    with pytest.raises(LockedError, match="its lock was removed"), one.locked(mine) as lock:
        two.remove(theirs)
        lock.check()


def test_a_store_that_is_open_is_opened_once(opener: Opener) -> None:
    store = opener()
    assert open_store(store) is store and opener() is not store


# ---- what lies in a run in a folder that vitp did not put there ---------------------------------------------------

ACTIONS = {
    "exists": lambda store, path: store.exists(path),
    "fetch": lambda store, path: store.fetch(path),
    "list": lambda store, path: store.list(path.parent),
    "folders": lambda store, path: store.folders(path.parent),
    "write": lambda store, path: store.write(path, b"x"),
    "create": lambda store, path: store.create(path, b"x"),
    "remove": lambda store, path: store.remove(path),
    "is_locked": lambda store, path: store.is_locked(path),
    "locked": lambda store, path: store.locked(path).__enter__(),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("linked", ["", "proposals", "proposals/shards", "proposals/shards/00000"])
def test_nothing_goes_through_a_linked_folder(tmp_path: Path, action: str, linked: str) -> None:
    """The run directory itself may be a link."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    inner = victim / Path("proposals/shards/00000").relative_to(linked or ".")
    inner.mkdir(parents=True)
    (inner / "lock").write_bytes(b"mine")
    (run / linked).parent.mkdir(parents=True, exist_ok=True)
    (run / linked).symlink_to(victim)
    store, path = LocalStore(run), run / "proposals/shards/00000/lock"
    if not linked:
        assert store.exists(path) and store.list(path.parent) == {"lock": 4}
        return
    for _ in range(2):  # a refusal is not remembered as having been looked at
        with pytest.raises(CorruptError, match="is a link, and vitp follows no links inside a run") as info:
            ACTIONS[action](store, path)
        assert str(run / linked) in str(info.value)
    assert {p.name: p.read_bytes() for p in victim.rglob("*") if p.is_file()} == {"lock": b"mine"}


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "socket"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / FILE
    path.parent.mkdir(parents=True)
    (tmp_path / "victim").write_bytes(b"precious")
    if kind in ("link", "dangling"):
        path.symlink_to(tmp_path / ("victim" if kind == "link" else "absent"))
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(path.parent)  # a socket's name must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    store = LocalStore(tmp_path / "run")
    with pytest.raises(CorruptError, match=str(path)):
        store.exists(path)
    assert store.list(path.parent) == {}
    store.write(path, b"new")  # replaces it, and not what it leads to
    assert store.exists(path) and (tmp_path / "victim").read_bytes() == b"precious"


def test_a_link_that_is_planted_later_is_found_by_the_next_look(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "run")
    path = write(store, FILE)
    assert store.exists(path)
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    store.look_again()
    with pytest.raises(CorruptError, match="is a link"):
        store.exists(path)


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a file is in the way of a folder"):
        LocalStore(tmp_path / "file").write(tmp_path / "file" / FILE, b"x")
