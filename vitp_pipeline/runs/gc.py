"""Remove stale files of killed tasks: `vitp gc`.

A task cleans its shard when it starts, so this is for shards that will not run again, and for inode quotas.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vitp_pipeline.artifacts.partial_part import stale_files
from vitp_pipeline.errors import LockedError
from vitp_pipeline.runs.status import stage_folders
from vitp_pipeline.storage.atomic_files import refusals
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.temporaries import TEMPORARY, is_abandoned


def collect(run: Run, remove: bool = True) -> list[tuple[Path, int]]:
    """List (file, bytes) of stale files: temporary files, arrays without the index that would commit them, free locks.

    Args:
        remove: remove them; False only lists them.
    Raises:
        InputError: not a run directory.
        StorageError: no permission or similar.
    """
    found: list[tuple[Path, int]] = []
    store = open_store(run)
    own = store.folder
    exports = [own / "exports" / name for name in store.folders(own / "exports")]
    for stage in (*stage_folders(store), *exports):
        if stage.parent.name == "classifier":
            found += _locked_folder(store, stage, remove)
            continue
        for name in store.folders(stage / "shards"):
            found += _locked_folder(store, stage / "shards" / name, remove)
        for folder in (stage, stage / "log", *_below(store, stage / "results")):
            found += _unlocked_folder(store, folder, remove)
    return found + _unlocked_folder(store, own, remove) + _unlocked_folder(store, own / "jobs", remove)


def _locked_folder(store: RunStore, folder: Path, remove: bool) -> list[tuple[Path, int]]:
    """List the stale files of a folder with a lock; none while a task works there."""
    lock = folder / "lock"
    files = store.list(folder)
    stale, there = _stale(store, folder, files), lock.name in files
    if not (stale or there) or store.is_locked(lock):
        return []
    if not remove:
        return [*stale, *([(lock, files[lock.name])] if there else [])]
    try:
        with store.locked(lock, wait=False):
            found = _remove(store, _stale(store, folder, store.list(folder)))  # again, now under the lock
            return [*found, (lock, 0)] if there else found
    except LockedError:
        return []


def _stale(store: RunStore, folder: Path, files: dict[str, int]) -> list[tuple[Path, int]]:
    return [(folder / name, files[name]) for name in stale_files(store, folder) if name in files]


def _below(store: RunStore, folder: Path) -> Iterator[Path]:
    """List a folder and its subfolders; links are not followed."""
    yield folder
    for name in store.folders(folder):
        yield from _below(store, folder / name)


def _unlocked_folder(store: RunStore, folder: Path, remove: bool) -> list[tuple[Path, int]]:
    files = store.list(folder).items()
    found = [(folder / name, size) for name, size in files if name.endswith(TEMPORARY) and is_abandoned(folder / name)]
    return _remove(store, found) if remove else found


def _remove(store: RunStore, found: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    for path, _ in found:
        with refusals(path):
            store.remove(path)
    return found
