"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import CorruptError, LockedError, StorageError

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
        LockedError: the temporary file was removed by somebody else, as a task does that takes a folder over.
    """
    unfinished = temporary(path)
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException as error:
            unfinished.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError) and error.filename == str(unfinished):
                raise LockedError(
                    f"{path}: its temporary file was removed while it was being written",
                    "Another task has taken over, or somebody has cleaned up; run the same command again",
                ) from error
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
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\u" in text:  # halves of surrogate pairs are no text, and cannot be printed or written
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return content
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path}: damaged ({error})", "Remove this file, then run the stage again") from error


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
