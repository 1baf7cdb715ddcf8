from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from tests.local_runs import create_sealed
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.errors import StorageError
from vitp_pipeline.storage import atomic_files, fs_ops
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.fs_ops import Step, fill, overwrite, watched
from vitp_pipeline.storage.sealed import read_sealed

fork = multiprocessing.get_context("fork")


def refuse(what: Step, name: str = ""):
    """A watcher to whom the disk is full at such a step."""

    def watcher(step: Step, path: Path, content: bytes, write) -> None:
        if step is what and path.name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return watcher


def test_steps_of_a_file_that_is_written_whole(tmp_path: Path) -> None:
    seen: list[tuple[Step, str, bytes]] = []
    with watched(lambda step, path, content, write: seen.append((step, path.name.split(".")[0], content))):
        write_whole(tmp_path / "new/a.txt", lambda unfinished: fill(unfinished, "ä"))
    assert seen == [
        (Step.MAKE_FOLDER, "new", b""),
        (Step.OPEN, "a", b""),
        (Step.WRITE, "a", "ä".encode()),
        (Step.SYNC, "a", b""),
        (Step.RENAME, "a", b""),
        (Step.SYNC_FOLDER, "new", b""),
    ]
    write_whole(tmp_path / "new/a.txt", lambda unfinished: fill(unfinished, b"x"))
    assert len(seen) == 6  # nobody watches any more


def test_a_file_overwritten_in_place_is_as_long_as_its_new_content(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    file = fs_ops.open_in_place(path)
    for content in (b"a long one", b"short"):
        overwrite(path, file, content)
        assert path.read_bytes() == content
    os.close(file)


def test_a_full_disk_is_named_with_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(tmp_path)
    free = f"{status.f_bavail * status.f_frsize / 1e6:.1f}"
    monkeypatch.setattr(os, "statvfs", lambda path: status if Path(path).exists() else 1 / 0)
    with watched(refuse(Step.MAKE_FOLDER)), pytest.raises(StorageError) as info:
        write_whole(tmp_path / "not/there/a", lambda unfinished: fill(unfinished, b""))
    assert info.value.message == f"{tmp_path}/not/there/a: the disk is full ({free} MB free)"


def test_a_full_disk_at_the_first_bytes_of_a_part_leaves_nothing(tmp_path: Path) -> None:
    with watched(refuse(Step.WRITE)), pytest.raises(StorageError, match="the disk is full"):
        ArrayWriter(tmp_path / "part-0000.zarr.zip", {"long": "x" * 20_000})
    assert list(tmp_path.iterdir()) == []


def _create(path: Path, barrier, results, number: int) -> None:
    barrier.wait()
    results[number] = int(create_sealed(path, {"winner": number}))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_one_task_wins_and_the_file_is_whole(tmp_path: Path, monkeypatch, number: int) -> None:
    def no_links(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(atomic_files, "SETTLE", 0.3)
    path = tmp_path / "run.json"
    barrier, results = fork.Barrier(4), fork.Array("i", [-1] * 4)
    tasks = [fork.Process(target=_create, args=(path, barrier, results, n)) for n in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(20)
    assert sorted(results) == [0, 0, 0, 1] and read_sealed(path) == {"winner": list(results).index(1)}
    assert not create_sealed(path, {"winner": 5}) and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_without_hard_links_a_kill_never_leaves_half_a_file(tmp_path: Path, monkeypatch) -> None:
    """At no step does the file hold anything but all of its content."""
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "")))
    monkeypatch.setattr(atomic_files, "SETTLE", 0.0)
    path, content = tmp_path / "run.json", {"images": ["x"] * 1000}

    def whole(*_: object) -> None:
        assert not path.exists() or read_sealed(path) == content

    with watched(whole):
        assert create_sealed(path, content)
