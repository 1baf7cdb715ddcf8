"""All disk writes of the package, one function per kind: whatever must survive a kill at any moment goes through here.

Before each such step the function of `watched` is called, if there is one. The tests have it kill the process, refuse
(the disk is full), or let a part of the bytes through, at every step that the stages come by
(`tests/faults`, docs/faults.md). A write that goes by another way fails `tests/faults/test_steps.py`. Inside a run no
step goes through a link (`layout.refuse_links`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from vitp_pipeline.storage.layout import open_own, refuse_links


class Step(StrEnum):
    """Change that is about to be made to a path."""

    MAKE_FOLDER = "make-folder"
    OPEN = "open"
    """A file is made, or opened to be changed."""
    WRITE = "write"
    """Bytes go into it."""
    CUT = "cut"
    """It is shortened."""
    SYNC = "sync"
    """Its bytes are forced to disk."""
    RENAME = "rename"
    """It becomes another file, whole."""
    LINK = "link"
    """It becomes another file unless there is one."""
    SYNC_FOLDER = "sync-folder"
    """Names in a folder are forced to disk."""
    REMOVE = "remove"


Watcher = Callable[[Step, Path, bytes, Callable[[bytes], object]], None]
"""Called before a step with its path (of a rename or link: the new one), the bytes to be written, and what would write
them; raises what the step shall raise.
"""
_watcher: Watcher | None = None


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Has `watcher` called before every step of this process while the block runs."""
    global _watcher
    _watcher = watcher
    try:
        yield
    finally:
        _watcher = None


def _at(step: Step, path: Path, content: Any = b"", write: Callable[[bytes], object] = len) -> None:
    if _watcher is not None:
        _watcher(step, path, bytes(content), write)


class _File(io.FileIO):
    """A file whose writes, as they reach the system, are steps."""

    def write(self, content: Any, /) -> int:
        _at(Step.WRITE, Path(str(self.name)), content, super().write)
        return super().write(content)


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, unless they are there. OSError EOPNOTSUPP where there can be none."""
    refuse_links(path)
    if not path.is_dir():
        _at(Step.MAKE_FOLDER, path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # of the folder it lies in, which was made or is there: so /proc refuses
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path)) from error


def new_file(path: Path) -> io.BufferedWriter:
    """Open a new file. An existing one is removed first: it may have a second name, or be a link."""
    refuse_links(path.parent)
    remove(path)
    _at(Step.OPEN, path)
    return io.BufferedWriter(_File(path, "x"))


def fill(path: Path, content: bytes | memoryview | str) -> None:
    """Make a file of these bytes, or of this text as UTF-8; neither atomic nor synced, as `write_whole` is."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Force the bytes of a file to disk."""
    _at(Step.SYNC, path)
    with os.fdopen(open_own(path, os.O_RDWR), "rb") as file:
        os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    refuse_links(target.parent)
    _at(Step.RENAME, target)
    source.replace(target)


def link(source: Path, target: Path) -> None:
    """Raise FileExistsError when there is a `target`."""
    refuse_links(target.parent)
    _at(Step.LINK, target)
    os.link(source, target)


def sync_folder(folder: Path) -> None:
    """Make renames durable. Some network file systems refuse to sync folders; they keep renames anyway."""
    _at(Step.SYNC_FOLDER, folder)
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


def remove(path: Path) -> None:
    """Remove a file or a link, if it is there."""
    refuse_links(path.parent)
    if os.path.lexists(path):
        _at(Step.REMOVE, path)
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; links are not followed."""
    refuse_links(path.parent)
    if path.is_dir() and not path.is_symlink():
        _at(Step.REMOVE, path)
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove(path)


def open_in_place(path: Path, flags: int = 0) -> int:
    """Open a file for in-place changes, as lock files are, creating it if needed; return its descriptor."""
    _at(Step.OPEN, path)
    return open_own(path, os.O_RDWR | os.O_CREAT | flags)


def overwrite(path: Path, file: int, content: bytes) -> None:
    """Replace the content of an open file: one write, then truncate, so that no reader sees half of it."""
    _at(Step.WRITE, path, content, lambda some: os.pwrite(file, some, 0))
    os.pwrite(file, content, 0)
    _at(Step.CUT, path)
    os.ftruncate(file, len(content))
    _at(Step.SYNC, path)
    os.fsync(file)
