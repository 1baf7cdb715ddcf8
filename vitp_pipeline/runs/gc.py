"""Stale files of killed tasks: `vitp gc`.

A task cleans its shard when it starts, so this is for shards that nobody will run again, and for an inode quota.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vitp_pipeline.artifacts.partial_part import stale_files
from vitp_pipeline.errors import LockedError
from vitp_pipeline.runs.status import stage_folders
from vitp_pipeline.storage.atomic_files import refusals
from vitp_pipeline.storage.backend import discard, files_in, folders_in
from vitp_pipeline.storage.locks import is_locked, locked
from vitp_pipeline.storage.temporaries import TEMPORARY, is_abandoned


def collect(run: Path, remove: bool = True) -> list[tuple[Path, int]]:
    """(file, bytes) of every leaving: temporary files, arrays without the index that would commit them, free locks.

    Args:
        remove: removes them; False only finds them.
    Raises:
        InputError: no run lies there.
        StorageError: no permission and its kin.
    """
    found: list[tuple[Path, int]] = []
    exports = [run / "exports" / name for name in folders_in(run / "exports")]
    for stage in (*stage_folders(run), *exports):
        if stage.parent.name == "classifier":
            found += _locked_folder(stage, remove)
            continue
        for name in folders_in(stage / "shards"):
            found += _locked_folder(stage / "shards" / name, remove)
        for folder in (stage, stage / "log", *_below(stage / "results")):
            found += _unlocked_folder(folder, remove)
    return found + _unlocked_folder(run, remove) + _unlocked_folder(run / "jobs", remove)


def _locked_folder(folder: Path, remove: bool) -> list[tuple[Path, int]]:
    """Stale files of a folder that a task owns by its lock; none while one is at work."""
    lock = folder / "lock"
    files = files_in(folder)
    stale, there = _stale(folder, files), lock.name in files
    if not (stale or there) or is_locked(lock):
        return []
    if not remove:
        return [*stale, *([(lock, files[lock.name])] if there else [])]
    try:
        with locked(lock, wait=False):
            found = _remove(_stale(folder, files_in(folder)))  # once more: now nobody else is here
            return [*found, (lock, 0)] if there else found
    except LockedError:
        return []


def _stale(folder: Path, files: dict[str, int]) -> list[tuple[Path, int]]:
    return [(folder / name, files[name]) for name in stale_files(folder) if name in files]


def _below(folder: Path) -> Iterator[Path]:
    """A folder and those in it; links are none."""
    yield folder
    for name in folders_in(folder):
        yield from _below(folder / name)


def _unlocked_folder(folder: Path, remove: bool) -> list[tuple[Path, int]]:
    files = sorted(files_in(folder).items())
    found = [(folder / name, size) for name, size in files if name.endswith(TEMPORARY) and is_abandoned(folder / name)]
    return _remove(found) if remove else found


def _remove(found: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    for path, _ in found:
        with refusals(path):
            discard(path)
    return found
