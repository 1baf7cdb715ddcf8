"""A run on an object store, and the scratch folder in which this process works on it.

Files are sent one after another in the order in which they would be renamed, and what commits a part or a shard (its
index, done.json) is an object written last. The objects alone count: the scratch folder is new for every process, holds
what it has fetched and made, and is removed when it ends, or by the next process on this machine when it was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from vitp_pipeline.storage import object_lock
from vitp_pipeline.storage.atomic_files import refusals
from vitp_pipeline.storage.fs_ops import make_folder, remove, rename
from vitp_pipeline.storage.locks import Lock
from vitp_pipeline.storage.object_client import ObjectClient
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.temporaries import temporary

ARCHIVE = ".zarr.zip"
ARCHIVES_KEPT = 16
"""Fetched archives of arrays that stay in the scratch folder: the oldest goes when another comes."""
AT_ONCE = 32
"""Requests at once where many small files are fetched."""
SCRATCH = "VITP_SCRATCH"
"""Environment variable: where scratch folders lie; without it where temporary files do (TMPDIR)."""


class ObjectStore(RunStore):
    """A run on an object store. A file that is in the scratch folder is taken for good: what is committed stays."""

    def __init__(self, url: str) -> None:
        self.url, self._client = url, ObjectClient(url)
        self.folder = _scratch_folder() / self._client.name
        make_folder(self.folder)
        self._archives: deque[Path] = deque()

    def exists(self, path: Path) -> bool:
        return path.exists() or self._client.is_object(self._name(path))

    def fetch(self, path: Path) -> Path:
        if path.exists():
            return path
        unfinished = temporary(path).with_suffix(f".{threading.get_ident()}.part")
        with refusals(path):
            make_folder(path.parent)
            try:
                if self._client.get(self._name(path), unfinished):
                    rename(unfinished, path)
            finally:
                remove(unfinished)
        if path.name.endswith(ARCHIVE):
            self._archives.append(path)
            while len(self._archives) > ARCHIVES_KEPT:
                remove(self._archives.popleft())  # open readers keep their file
        return path

    def fetch_all(self, paths: Iterable[Path]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as fetchers:
            for _ in fetchers.map(self.fetch, paths):
                pass

    def publish(self, path: Path) -> None:
        self._client.put(self._name(path), path)

    def _publish_new(self, path: Path) -> bool:
        if self._client.create(self._name(path), path.read_bytes()):
            return True
        remove(path)
        return False

    def release(self, path: Path) -> None:
        remove(path)

    def remove(self, path: Path) -> None:
        self._client.delete(self._name(path))
        remove(path)

    def list(self, folder: Path) -> dict[str, int]:
        entries = self._client.entries(self._name(folder))
        return dict(sorted((name, size) for name, size in entries if size is not None))

    def folders(self, folder: Path) -> Sequence[str]:
        return sorted(name for name, size in self._client.entries(self._name(folder)) if size is None)

    def locked(self, path: Path, wait: bool = True) -> AbstractContextManager[Lock]:
        return object_lock.locked(self._client, self._name(path), path, wait)

    def is_locked(self, path: Path) -> bool:
        return object_lock.is_locked(self._client, self._name(path))

    def look_again(self, folder: Path | None = None) -> None:
        folder = folder or self.folder
        for entry in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() else remove(entry)

    def _name(self, path: Path) -> str:
        return "" if path == self.folder else path.relative_to(self.folder).as_posix()


def _scratch_folder() -> Path:
    """Make a new folder of this process alone; remove those of processes that were killed."""
    parent = Path(os.environ.get(SCRATCH) or tempfile.gettempdir())
    make_folder(parent)
    for old in parent.glob("vitp-run-*"):
        with contextlib.suppress(OSError), (old / "held").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
            shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="vitp-new-", dir=parent)).resolve()
    held = (new / "held").open("wb")
    fcntl.flock(held, fcntl.LOCK_EX)
    folder = new.rename(new.with_name(new.name.replace("vitp-new-", "vitp-run-")))  # from now on others look at it
    atexit.register(_drop, folder, held, os.getpid())
    return folder


def _drop(folder: Path, held: BinaryIO, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
    held.close()
