from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitp_pipeline.errors import LockedError, StorageError
from vitp_pipeline.storage.atomic_files import write_json, write_whole
from vitp_pipeline.storage.digests import Digests
from vitp_pipeline.storage.locks import locked
from vitp_pipeline.storage.run_store import LocalStore
from vitp_pipeline.storage.sealed import read_sealed, sealed, write_sealed

fork = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---- written whole --------------------------------------------------------------------------------------------------


def test_write_whole_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/a.bin"
    write_whole(path, lambda t: t.write_bytes(b"one"))
    write_whole(path, lambda t: t.write_bytes(b"two"))
    assert path.read_bytes() == b"two" and names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/absent", "/dev/stdout"])
def test_write_whole_replaces_no_device(device: str) -> None:
    """Root may rename a file onto /dev/null."""
    with pytest.raises(StorageError, match=f"{device} is a device"):
        write_whole(Path(device), b"words")
    assert Path("/dev/null").is_char_device() and not Path("/dev/absent").exists()


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_write_whole_keeps_the_old_file_when_writing_fails(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ha")
        raise error

    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
        write_whole(path, half)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_refusals_name_the_file_and_the_hint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="in the way") as info:
        write_json(tmp_path / "file/x.json", {})
    assert str(tmp_path / "file/x.json") in str(info.value) and info.value.exit_code == 8
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="in the way"):
        write_json(tmp_path / "folder", {})
    assert names(tmp_path) == ["file", "folder"]


def test_a_file_size_limit_is_met_without_stale_files(tmp_path: Path) -> None:
    """A refusal by the kernel itself, in a process of its own."""

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_json(tmp_path / "a.json", ["x" * 5000])
        except StorageError as error:
            os._exit(0 if "larger than allowed" in str(error) else 3)
        os._exit(4)

    process = fork.Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == 0 and names(tmp_path) == []


def _race(path: Path, barrier, results, number: int) -> None:
    barrier.wait()
    results[number] = int(write_whole(path, sealed(path, {"winner": number}), replace=False))


@pytest.mark.slow
def test_create_sealed_has_exactly_one_winner(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / str(attempt) / "run.json"
        barrier, results = fork.Barrier(6), fork.Array("i", [-1] * 6)
        tasks = [fork.Process(target=_race, args=(path, barrier, results, n)) for n in range(6)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join(20)
        assert sorted(results) == [0, 0, 0, 0, 0, 1]
        assert read_sealed(path) == {"winner": list(results).index(1)}
        assert names(path.parent) == ["run.json"]


def _write_often(path: Path, barrier, failures, number: int) -> None:
    barrier.wait()
    try:
        for i in range(50):
            write_sealed(path, {"by": number, "i": i})
    except BaseException:
        failures[number] = 1


def test_write_sealed_from_several_tasks_at_once(tmp_path: Path) -> None:
    """Array tasks that start together all remember digests in one file."""
    path = tmp_path / "digests.json"
    barrier, failures = fork.Barrier(4), fork.Array("i", [0] * 4)
    tasks = [fork.Process(target=_write_often, args=(path, barrier, failures, n)) for n in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
    assert list(failures) == [0] * 4 and read_sealed(path)["i"] == 49 and names(tmp_path) == ["digests.json"]


# ---- locks ----------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from vitp_pipeline.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_task_is_turned_away_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "shard/lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"process {holder.pid}") as info, locked(path):
            pass
        assert str(path.parent) in str(info.value) and info.value.exit_code == 9
    finally:
        holder.kill()
        holder.wait()
    for _ in range(100):  # the kernel frees it as the process goes
        try:
            with locked(path):
                assert str(os.getpid()) in path.read_text()
            break
        except LockedError:
            time.sleep(0.05)
    else:
        pytest.fail("still locked")


def test_the_lock_is_free_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock"):
        pass


def test_a_lock_on_a_removed_file_keeps_out_nobody_so_it_is_taken_anew(tmp_path: Path, monkeypatch) -> None:
    """A opens the file, B (its owner) removes it and ends, C makes a new one: A and C must not both go on."""
    import vitp_pipeline.storage.locks as files

    path = tmp_path / "lock"
    flock, removed = files.fcntl.flock, []

    def slow(file, how) -> None:
        if not removed:
            removed.append(True)
            path.unlink()
        flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", slow)
    with locked(path):
        assert path.exists()
        with pytest.raises(LockedError), locked(path):
            pass


# ---- digests --------------------------------------------------------------------------------------------------------


def test_digests_are_remembered_by_size_and_time(tmp_path: Path, monkeypatch) -> None:
    import vitp_pipeline.storage.digests as module

    reads, real = [], module.file_digest
    monkeypatch.setattr(module, "file_digest", lambda p: reads.append(p) or real(p))
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    first = Digests(LocalStore(tmp_path / "run")).of(file)
    assert Digests(LocalStore(tmp_path / "run")).of(file) == first and len(reads) == 1
    (tmp_path / "other").write_bytes(b"abc")
    assert Digests(LocalStore(tmp_path / "run")).of(tmp_path / "other") == first and len(reads) == 2
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))
    assert Digests(LocalStore(tmp_path / "run")).of(file) != first and len(reads) == 3
    (tmp_path / "run/digests.json").write_text("{")
    assert Digests(LocalStore(tmp_path / "run")).of(file) == real(file)
    assert str(file) in read_sealed(tmp_path / "run/digests.json")["files"]
