"""`copies.json`: a second copy of the small files of a stage that no rerun could make again as they were.

run.json of every stage; of a training also what it says of its course and its end; of an evaluation its figures, of an
export the digests of its files. A copy is as good as the file, for both are sealed or named by a sealed file;
`vitp verify --repair` puts back what was damaged or lost.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import CorruptError
from vitp_pipeline.storage.layout import open_plain
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import read_sealed, read_text, sealed

COPIES = "copies.json"
LAST = ("result.json", "files.json")
"""Files that a stage writes when all of its shards are done. They follow from the shards, but for their dates."""


def keep_copies(store: RunStore, folder: Path, names: Iterable[str], texts: dict[str, str] | None = None) -> None:
    """Write the copies of some files of a folder.

    Args:
        texts: of files that are not written yet.
    Raises:
        CorruptError: one of the files is missing.
    """
    files = {name: _copy(store.fetch(folder / name)) for name in names} | (texts or {})
    store.write(folder / COPIES, sealed(folder / COPIES, {"files": files}))


def copies_in(store: RunStore, folder: Path) -> dict[str, str]:
    """Read the copies by file name; {} without any. Raises CorruptError when they are damaged."""
    if not store.exists(folder / COPIES):
        return {}
    files: dict[str, str] = read_sealed(store.fetch(folder / COPIES))["files"]
    return files


def write_last(store: RunStore, path: Path, content: dict[str, Any]) -> None:
    """Write one of the `LAST` files of a stage, then its copy: whenever a task is killed, there is a copy of what was
    written alone, and one without its file means that the file was lost.
    """
    if is_copied(store, path):
        keep_copies(store, path.parent, ["run.json"])
    store.write(path, sealed(path, content))
    keep_copies(store, path.parent, ["run.json", path.name])


def is_copied(store: RunStore, path: Path) -> bool:
    """Tell if a file of a stage has a copy."""
    try:
        return path.name in copies_in(store, path.parent)
    except CorruptError:
        return False


def restore(store: RunStore, path: Path, copy: str) -> None:
    """Replace a file by its copy."""
    store.write(path, copy if _is_text(path.name) else base64.b64decode(copy))


def _copy(path: Path) -> str:
    if _is_text(path.name):
        return read_text(path)
    with open_plain(path) as file:
        return base64.b64encode(file.read()).decode("ascii")


def _is_text(name: str) -> bool:
    return name.endswith((".json", ".jsonl"))
