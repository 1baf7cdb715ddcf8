"""The store of a run: all access to files of a run, reading and writing, goes through it.

Stages work in a folder, `RunStore.folder`. For a run in a folder that is the run itself (`LocalStore`); for one on an
object store (`--out s3://bucket/prefix`) it is a scratch folder of this process, and the objects are the results
(`object_store.ObjectStore`). `exists` and `list` never download a file, `fetch` does.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vitp_pipeline.storage import locks
from vitp_pipeline.storage.atomic_files import Content, write_whole
from vitp_pipeline.storage.fs_ops import remove
from vitp_pipeline.storage.layout import refuse_links
from vitp_pipeline.storage.locks import Lock


class RunStore(ABC):
    """The files of a run. Made by `open_store`, once, where a command or a caller names a run.

    Attributes:
        folder: the folder in which this process works on the run; paths below are of files in it.
        url: the run as people name it.

    Every method raises CorruptError when a link, a pipe or a socket lies in the run in place of a file or a folder, and
    StorageError when a disk or an object store refuses.
    """

    folder: Path
    url: str

    @abstractmethod
    def exists(self, path: Path) -> bool:
        """Tell if a file is in the run. Downloads nothing."""

    @abstractmethod
    def fetch(self, path: Path) -> Path:
        """Fetch a file, if it exists, so that it can be read; return its local path."""

    @abstractmethod
    def remove(self, path: Path) -> None:
        """Remove a file from the run, if it exists."""

    @abstractmethod
    def list(self, folder: Path) -> dict[str, int]:
        """Return sizes in bytes by name, sorted, of the files in a folder; {} where there is no folder."""

    @abstractmethod
    def folders(self, folder: Path) -> Sequence[str]:
        """Return the names, sorted, of the folders in a folder; [] where there is no folder."""

    @abstractmethod
    def locked(self, path: Path, wait: bool = True) -> AbstractContextManager[Lock]:
        """Hold the lock that a file is while the block runs. Raises LockedError; see `locks.locked`."""

    @abstractmethod
    def is_locked(self, path: Path) -> bool:
        """Tell if a task holds that lock now."""

    @abstractmethod
    def look_again(self, folder: Path | None = None) -> None:
        """Drop cached listings and fetched files, all or those of a stage: other tasks may have changed them."""

    def write(self, path: Path, content: Content) -> None:
        """Write a file of the run, whole or not at all. Raises as `write_whole`."""
        write_whole(path, content)
        self.publish(path)

    def create(self, path: Path, content: Content) -> bool:
        """Write unless the file exists; of several tasks at once exactly one gets True."""
        return write_whole(path, content, replace=False) and self._publish_new(path)

    @abstractmethod
    def publish(self, path: Path) -> None:
        """Add a complete local file to the run; it replaces a file of its name."""

    @abstractmethod
    def release(self, path: Path) -> None:
        """Release the local copy of a fetched or published file."""

    @abstractmethod
    def fetch_all(self, paths: Iterable[Path]) -> None:
        """Fetch those of the files that exist, in parallel."""

    @abstractmethod
    def _publish_new(self, path: Path) -> bool:
        """Publish unless the run has a file of that name; then remove the local one and return False."""


class LocalStore(RunStore):
    """A run in a folder. Files that lie in no run are files as any other: links to them are followed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder)
        self._folders: set[Path] = set()
        """Folders of the run that were seen to be no links; each is looked at once."""

    def exists(self, path: Path) -> bool:
        return refuse_links(path, self._folders)

    def fetch(self, path: Path) -> Path:
        refuse_links(path.parent, self._folders)  # opening refuses a link in the place of the file itself
        return path

    def remove(self, path: Path) -> None:
        remove(path)

    def list(self, folder: Path) -> dict[str, int]:
        return {entry.name: size for entry in self._entries(folder) if (size := _size(entry)) is not None}

    def folders(self, folder: Path) -> Sequence[str]:
        return [entry.name for entry in self._entries(folder) if entry.is_dir(follow_symlinks=False)]

    def locked(self, path: Path, wait: bool = True) -> AbstractContextManager[Lock]:
        return locks.locked(path, wait)

    def is_locked(self, path: Path) -> bool:
        return locks.is_locked(self.fetch(path))

    def look_again(self, folder: Path | None = None) -> None:
        self._folders.clear()

    # a file that lies here whole is a file of the run

    def publish(self, path: Path) -> None: ...

    def release(self, path: Path) -> None: ...

    def fetch_all(self, paths: Iterable[Path]) -> None: ...

    def _publish_new(self, path: Path) -> bool:
        return True

    def _entries(self, folder: Path) -> Sequence[os.DirEntry[str]]:
        refuse_links(folder, self._folders)
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the size of a file; None if it is not a file."""
    try:
        return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else None
    except FileNotFoundError:  # renamed meanwhile
        return None
