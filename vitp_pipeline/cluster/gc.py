"""What killed tasks left behind: `vitp gc`.

A task cleans its shard when it starts, so this is for shards that nobody will run again, and for an inode quota.
"""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

from vitp_pipeline.artifacts.files import TEMPORARY, refusals
from vitp_pipeline.artifacts.locks import is_locked, locked
from vitp_pipeline.artifacts.parts import index_path
from vitp_pipeline.artifacts.spool import left_over
from vitp_pipeline.artifacts.writes import remove
from vitp_pipeline.errors import LockedError
from vitp_pipeline.stages.status import stage_folders

HOUR = 3600.0
"""A temporary file of another host that lies outside every lock is a leaving when it has not changed for so long."""


def collect(run: Path, remove: bool = True) -> list[tuple[Path, int]]:
    """(file, bytes) of every leaving: temporary files, arrays without the index that would commit them, free locks.

    Args:
        remove: removes them; False only finds them.
    Raises:
        InputError: no run lies there.
        StorageError: no permission and its kin.
    """
    found: list[tuple[Path, int]] = []
    exports = sorted(path.parent for path in (run / "exports").glob("*/run.json"))
    for stage in (*stage_folders(run), *exports):
        for folder in [stage] if stage.parent.name == "classifier" else sorted((stage / "shards").glob("*")):
            found += _locked_folder(folder, remove)
        if stage.parent.name != "classifier":
            for folder in (stage, *stage.glob("results/**/")):
                found += _unlocked_folder(folder, remove)
    return found + _unlocked_folder(run, remove)


def _locked_folder(folder: Path, remove: bool) -> list[tuple[Path, int]]:
    """Leavings of a folder that a task owns by its lock; none while one is at work."""
    lock = folder / "lock"
    leavings = _leavings(folder)
    if is_locked(lock) or not (leavings or lock.exists()):
        return []
    if not remove:
        return [(path, path.stat().st_size) for path in (*leavings, *([lock] if lock.exists() else []))]
    try:
        there = lock.exists()
        with locked(lock, wait=False):
            found = _remove(_leavings(folder))  # once more: now nobody else is here
            return [*found, (lock, 0)] if there else found
    except LockedError:
        return []


def _leavings(folder: Path) -> list[Path]:
    leavings = sorted(folder.glob(f"*{TEMPORARY}"))
    for arrays in sorted(folder.glob("part-*.zarr.zip")):
        part = int(arrays.name.removeprefix("part-").removesuffix(".zarr.zip"))
        if not index_path(folder, part).exists():
            leavings.append(arrays)
    return leavings + left_over(folder)


def _unlocked_folder(folder: Path, remove: bool) -> list[tuple[Path, int]]:
    leavings = [path for path in sorted(folder.glob(f"*{TEMPORARY}")) if _abandoned(path)]
    return _remove(leavings) if remove else [(path, path.stat().st_size) for path in leavings]


def _abandoned(path: Path) -> bool:
    """Whether nobody is writing: its process is gone, or, on another host, it is old."""
    match = re.fullmatch(rf".*\.{re.escape(socket.gethostname())}\.([0-9]+){re.escape(TEMPORARY)}", path.name)
    if match:
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    try:
        return time.time() - path.stat().st_mtime > HOUR
    except FileNotFoundError:
        return False


def _remove(paths: list[Path]) -> list[tuple[Path, int]]:
    removed = []
    for path in paths:
        with refusals(path):
            try:
                size = path.stat().st_size
                remove(path)
            except FileNotFoundError:
                continue
        removed.append((path, size))
    return removed
