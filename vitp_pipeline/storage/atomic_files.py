"""Write files atomically: a file appears complete or not at all."""

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
from vitp_pipeline.storage.fs_ops import fill, link, make_folder, remove, rename, sync, sync_folder
from vitp_pipeline.storage.temporaries import temporary, tidy

Content = bytes | memoryview | str | Callable[[Path], object]
"""The bytes of a file, its text, or a function that fills a file of that name."""
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
    errno.EOPNOTSUPP: ("folders cannot be created here", "Choose another --out"),  # as make_folder says
    errno.EFBIG: ("the file would be larger than allowed here", "Raise `ulimit -f` and run the same command again"),
}


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn file-system errors into one clear line (StorageError); other errors pass."""
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
    """Turn the removal of the temporary file of `path` into LockedError."""
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
    """Convert an unexpected file-system error, such as one of reading a file, to a StorageError; None for other errors,
    which are bugs.
    """
    if error.filename is None:
        return None
    if isinstance(error, PermissionError):
        return StorageError(f"{error.filename}: no permission", "Change the permissions, or name another place")
    if error.errno == errno.ENAMETOOLONG:
        return StorageError(f"{error.filename}: the name is too long for the file system", "Choose a shorter name")
    return None


def write_whole(path: Path, content: Content, replace: bool = True) -> bool:
    """Fill a temporary file next to `path`, force it to disk, and rename it into place. Files of a run are
    written by `RunStore.write`.

    Several tasks may write the same file at once; the last one wins, and it is whole.

    Args:
        replace: False keeps a file that is there; of several tasks at once exactly one gets True.
    Returns:
        Whether the file is now this one.
    Raises:
        StorageError: disk full, read-only or no permission, a device; `path` is then as it was before.
        LockedError: the temporary file was removed by another task, as one does that takes a folder over.
    """
    if path.parent == Path("/dev") or path.is_char_device() or path.is_block_device():
        raise StorageError(f"{path} is a device, not a file", "Name a file; `-` is standard output where it is offered")
    unfinished = temporary(path)
    with refusals(path):
        make_folder(path.parent)
        tidy(path.parent)
        try:
            with removals(unfinished, path):
                if callable(content):
                    content(unfinished)
                else:
                    fill(unfinished, content)
                sync(unfinished)
                if replace:
                    rename(unfinished, path)
                else:
                    _link(unfinished, path)
        except FileExistsError:
            if replace:
                raise
            return False
        finally:
            remove(unfinished)
        sync_folder(path.parent)
    return True


def as_json(content: Any) -> str:
    """Format JSON with sorted keys, indented, ending with a line break. A NaN is a ValueError: see `figure.plain`."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON that other tools read, as `write_whole`; JSON that a run reads again is sealed (`storage.sealed`)."""
    write_whole(path, as_json(content))


def _link(source: Path, path: Path) -> None:
    """Give `source` the name `path` unless that exists: by a hard link or, if unsupported, by renaming it.

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
    """Describe the free space on the disk of `path`."""
    while not path.exists() and path != path.parent:
        path = path.parent
    status = os.statvfs(path)
    files = "" if status.f_favail or not status.f_files else ", but no file more"
    return f"{status.f_bavail * status.f_frsize / 1e6:.1f} MB free{files}"
