"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import LockedError, StorageError
from vitp_pipeline.storage.backend import publish, publish_new
from vitp_pipeline.storage.fs_ops import fill, link, make_folder, remove, rename, sync, sync_folder
from vitp_pipeline.storage.temporaries import temporary, tidy

SETTLE = 1.0
"""Seconds between writing and reading back where several tasks could write at once and nothing keeps them apart."""

_REFUSALS = {
    errno.ENOSPC: ("the disk is full", "Free some space and run the same command again; finished parts are kept"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and run the same command again"),
    errno.EROFS: ("the file system is read-only", "Choose another --out"),
    errno.EACCES: ("no permission to write", "Choose another --out or change the permissions"),
    errno.EPERM: ("no permission to write", "Choose another --out or change the permissions"),
    errno.ENOTDIR: ("a file is in the way of a folder", "Choose another --out"),
    errno.EEXIST: ("a file is in the way of a folder", "Choose another --out"),
    errno.EISDIR: ("a folder is in the way of a file", "Choose another name"),
    errno.EOPNOTSUPP: ("no folder can be made here", "Choose another --out"),  # as make_folder says
    errno.EFBIG: ("the file would be larger than allowed here", "Raise `ulimit -f` and run the same command again"),
}


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns what a file system can refuse into one clear line (StorageError); other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        reason, hint = _REFUSALS[error.errno]
        if error.errno == errno.ENOSPC:
            reason = f"{reason} ({_free_space(path)})"
        raise StorageError(f"{path}: {reason}", hint) from error


@contextmanager
def removals(unfinished: Path, path: Path) -> Iterator[None]:
    """Turns the loss of a temporary file, which is to become `path`, into LockedError."""
    try:
        yield
    except FileNotFoundError as error:
        if error.filename != str(unfinished):
            raise
        raise LockedError(
            f"{path}: its temporary file was removed while it was being written",
            "Another task has taken over, or somebody has cleaned up; run the same command again",
        ) from error


def refusal(error: OSError) -> StorageError | None:
    """What a file system refused where nobody watched for it, looking at or reading a file, say; None of other errors,
    which are bugs.
    """
    if error.filename is None:
        return None
    if isinstance(error, PermissionError):
        return StorageError(f"{error.filename}: no permission", "Change the permissions, or name another place")
    if error.errno == errno.ENAMETOOLONG:
        return StorageError(f"{error.filename}: a longer name than the file system takes", "Choose a shorter one")
    return None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, forces it to disk, and renames it into place; if it belongs to
    a run on a store, it is then sent there.

    Raises:
        As `write_here`; StorageError also when the store refuses or does not answer.
    """
    write_here(path, write)
    publish(path)


def write_here(path: Path, write: Callable[[Path], object]) -> None:
    """`write_whole` for a file that is not to be sent yet, or not under this name.

    Several tasks may write the same file at once; the last one wins, and it is whole.

    Raises:
        StorageError: disk full, read-only or no permission; `path` is then as it was before.
        LockedError: the temporary file was removed by somebody else, as a task does that takes a folder over.
    """
    unfinished = temporary(path)
    with refusals(path):
        make_folder(path.parent)
        tidy(path.parent)
        try:
            with removals(unfinished, path):
                write(unfinished)
                sync(unfinished)
                rename(unfinished, path)
        except BaseException:
            remove(unfinished)
            raise
        sync_folder(path.parent)


def create_whole(path: Path, write: Callable[[Path], object]) -> bool:
    """`write_whole`, but only if `path` does not exist yet; of several tasks at once exactly one gets True.

    Raises:
        StorageError, LockedError: as `write_here`.
    """
    unfinished = temporary(path)
    with refusals(path):
        make_folder(path.parent)
        tidy(path.parent)
        try:
            with removals(unfinished, path):
                write(unfinished)
                sync(unfinished)
                _link(unfinished, path)
        except FileExistsError:
            return False
        finally:
            remove(unfinished)
        sync_folder(path.parent)
    return publish_new(path)


def as_json(content: Any) -> str:
    """JSON with sorted keys, indented, ending with a line break. A NaN is a ValueError: see `figure.plain`."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """`write_whole` for JSON that other tools read; what a run reads again is sealed (`storage.sealed`)."""
    text = as_json(content)
    write_whole(path, lambda unfinished: fill(unfinished, text))


def _link(source: Path, path: Path) -> None:
    """Gives `source` the name `path` unless that exists: by a hard link or, where there are none, by renaming it.

    Then of tasks that do so at the same moment the last one wins: all see after `SETTLE` whose content is there.

    Raises:
        FileExistsError: `path` exists, or another task won.
    """
    try:
        link(source, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if path.exists():
            raise FileExistsError(path) from error
        own = source.read_bytes()
        rename(source, path)
        time.sleep(SETTLE)
        if path.read_bytes() != own:
            raise FileExistsError(path) from error


def _free_space(path: Path) -> str:
    """What is left where `path` would lie."""
    while not path.exists() and path != path.parent:
        path = path.parent
    status = os.statvfs(path)
    files = "" if status.f_favail or not status.f_files else ", but no file more"
    return f"{status.f_bavail * status.f_frsize / 1e6:.1f} MB free{files}"
