"""SHA-256 of large files: a checkpoint of gigabytes is hashed when it is loaded, not at every start of every command.

The SHA-256 of a classifier trained in a run is in the .json next to it, written with it. Of other files,
anywhere on this machine, the run remembers what it has read (`digests.json`, by size and modification time). Neither is
trusted: a file is read again before it is loaded (`Digests.prove`, `load_classifier`), so that no file changed
under the same size and time gets into a result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runtime.output import with_aliases
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.layout import place, refuse_links
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged, read_sealed, sealed


class Digests:
    """Digests of files that a run is made with, remembered in the run."""

    def __init__(self, store: RunStore) -> None:
        self._store, self._path = store, store.folder / "digests.json"
        self._unproven: dict[Path, tuple[str, list[int]]] = {}

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a local file, 64 hex digits. A recorded or remembered file is not read again.

        Raises:
            CorruptError: the file that holds its digest is damaged.
        """
        if (known := recorded_digest(path)) is not None:
            return known
        memory, now = self._known(), _stamp(path)
        entry = memory.get(self._name(path), {})
        if entry.get("stamp") == now:
            known = str(entry["sha256"])
            self._unproven[path] = known, []
            return known
        digest = file_digest(path)
        self._unproven[path] = digest, now
        files = {**memory, self._name(path): {"stamp": now, "sha256": digest}}
        self._store.write(self._path, sealed(self._path, {"files": files}))
        return digest

    def prove(self) -> None:
        """Read the files again whose digest was told from memory, or that have changed since they were read: to be
        called before they are loaded.

        Raises:
            CorruptError: one has another content.
        """
        for path, (digest, read) in self._unproven.items():
            if _stamp(path) != read and file_digest(path) != digest:
                raise CorruptError(
                    f"{path}: changed since this run read it",
                    f"Restore it; if the change is intended, remove {with_aliases(self._path)}",
                )
        self._unproven.clear()

    def _known(self) -> dict[str, dict[str, Any]]:
        try:
            if not self._store.exists(self._path):
                return {}
            files: dict[str, dict[str, Any]] = read_sealed(self._store.fetch(self._path))["files"]
            return files
        except CorruptError:
            return {}  # only a cache: a damaged one is rebuilt

    def _name(self, path: Path) -> str:
        """Name a file the same in every process: by URL on a store, by its path in the run for files of the run."""
        path, run = path.resolve(), self._store.folder.resolve()
        return path.relative_to(run).as_posix() if path.is_relative_to(run) else with_aliases(path)


def _stamp(path: Path) -> list[int]:
    """Size and modification time of a file: the same as long as it is not changed."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def fetch_classifier(store: RunStore, path: Path) -> Path:
    """Fetch a classifier and its .json; return its path."""
    store.fetch_all([path, path.with_suffix(".json")])
    return store.fetch(path)


def recorded_digest(path: Path) -> str | None:
    """Return the SHA-256 that a classifier had when it was written, from its .json; None where that has none.

    Raises:
        CorruptError: inside a run, that file is damaged, or gone though the training has ended.
    """
    about = path.with_suffix(".json")
    if path.suffix != ".safetensors":
        return None
    if not refuse_links(about):
        if place(about) != about.name and refuse_links(about.with_name("done.json")):
            raise damaged(about, "is missing")
        return None
    try:
        return str(read_sealed(about)["sha256"])
    except (CorruptError, KeyError):
        if place(about) == about.name:
            return None  # of another tool, or copied out of its run
        raise


def require_recorded(path: Path) -> None:
    """Raise CorruptError when a classifier differs from the SHA-256 in its .json."""
    if (digest := recorded_digest(path)) is None:
        return
    if not path.exists():
        raise damaged(path, "is missing")
    if file_digest(path) != digest:
        raise damaged(path, "damaged (its checksum does not match)")
