"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vitp_pipeline.errors import CorruptError, LockedError, StorageError
from vitp_pipeline.progress import say

TEMPORARY = ".tmp"
"""Ending of files that are being written; one found without its writer is a killed task's leaving."""

_REFUSALS = {
    errno.ENOSPC: ("the disk is full", "Free some space and run the same command again; finished parts are kept"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and run the same command again"),
    errno.EROFS: ("the file system is read-only", "Choose another --out"),
    errno.EACCES: ("no permission to write", "Choose another --out or change the permissions"),
    errno.EPERM: ("no permission to write", "Choose another --out or change the permissions"),
    errno.ENOTDIR: ("a file is in the way of a folder", "Choose another --out"),
    errno.EEXIST: ("a file is in the way of a folder", "Choose another --out"),
    errno.EISDIR: ("a folder is in the way of a file", "Choose another name"),
    errno.EFBIG: ("the file would be larger than allowed here", "Raise `ulimit -f` and run the same command again"),
}


def temporary(path: Path) -> Path:
    """Where this process writes what will become `path`; no other task uses the same name."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}{TEMPORARY}")


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns what a file system can refuse into one clear line (StorageError); other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        reason, mend = _REFUSALS[error.errno]
        raise StorageError(f"{path}: {reason}", mend) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, forces it to disk, and renames it into place.

    Several tasks may write the same file at once; the last one wins, and it is whole.

    Raises:
        StorageError: disk full, read-only or no permission; `path` is then as it was before.
    """
    unfinished = temporary(path)
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """`write_whole` for JSON, with sorted keys."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda unfinished: _write_text(unfinished, text))


def create_json(path: Path, content: Any) -> bool:
    """Writes JSON only if `path` does not exist yet; of several tasks at once exactly one gets True."""
    unfinished = temporary(path)
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_text(unfinished, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
            _link(unfinished, path)
        except FileExistsError:
            return False
        finally:
            unfinished.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return True


def read_json(path: Path) -> Any:
    """Raises CorruptError when the file is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path}: damaged ({error})", "Remove this file, then run the stage again") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock while the block runs. The kernel frees it when the process dies, however it dies.

    Raises:
        LockedError: another task holds it; the message names its host and process.
    """
    with _lock_file(path) as file:
        with refusals(path):
            file.truncate(0)
            file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
            file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock now. Where the file system has no locks, its file being there counts."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed at once: `locked` knows of this moment
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


_PROBES = 3
"""How often a lock is asked for, 50 ms apart: somebody may have looked with `is_locked` at just that moment."""


def _lock_file(path: Path) -> TextIO:
    refused = 0
    while True:
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            refused += 1
            if refused < _PROBES:
                file.close()
                time.sleep(0.05)
                continue
            with file:
                file.seek(0)
                owner = file.read().strip() or "unknown"
            raise LockedError(f"{path.parent}: another task is at work here ({owner})", "Let it finish") from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            say(f"{path.parent}: this file system has no locks; make sure that no other task works on this shard")
            return file
        # its last owner may have removed the file since it was opened: then this lock keeps nobody out
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


def _link(source: Path, path: Path) -> None:
    """Gives `source` the name `path` unless that exists: by a hard link, or by copying where there are none."""
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        with path.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable. Some network file systems refuse to sync folders; they keep renames anyway."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
