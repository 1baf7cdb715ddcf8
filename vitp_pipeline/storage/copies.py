"""`copies.json`: a second copy of the small files of a stage that no rerun could make again as they were.

run.json of every stage; of a training also what it says of its course and its end. A copy is as good as the file, for
both are sealed or named by a sealed file; `vitp verify --repair` puts back what was damaged.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.backend import there
from vitp_pipeline.storage.fs_ops import fill
from vitp_pipeline.storage.layout import open_plain
from vitp_pipeline.storage.sealed import read_sealed, read_text, write_sealed

COPIES = "copies.json"


def keep_copies(folder: Path, names: Iterable[str], texts: dict[str, str] | None = None) -> None:
    """Writes the copies of some files of a folder.

    Args:
        texts: of files that are not written yet.
    Raises:
        CorruptError: one of the files is missing.
    """
    write_sealed(folder / COPIES, {"files": {name: _copy(folder / name) for name in names} | (texts or {})})


def copies_in(folder: Path) -> dict[str, str]:
    """The copies by file name; none where there are none. Raises CorruptError when they are damaged."""
    if not there(folder / COPIES):
        return {}
    files: dict[str, str] = read_sealed(folder / COPIES)["files"]
    return files


def restore(folder: Path, name: str, copy: str) -> None:
    """Puts a copy in the place of its file."""
    content = copy.encode() if _is_text(name) else base64.b64decode(copy)
    write_whole(folder / name, lambda unfinished: fill(unfinished, content))


def _copy(path: Path) -> str:
    if _is_text(path.name):
        return read_text(path)
    with open_plain(path) as file:
        return base64.b64encode(file.read()).decode("ascii")


def _is_text(name: str) -> bool:
    return name.endswith((".json", ".jsonl"))
