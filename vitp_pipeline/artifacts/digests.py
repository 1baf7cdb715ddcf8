"""SHA-256 of large files, remembered: a checkpoint of gigabytes is hashed once, not at every start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.files import read_json, write_json
from vitp_pipeline.artifacts.places import shown, stamp, there
from vitp_pipeline.errors import UserError
from vitp_pipeline.fingerprint import file_digest


class Digests:
    """Digests by path, size and modification time, kept in a JSON file of the run."""

    def __init__(self, run: Path) -> None:
        self._path = run / "digests.json"

    def of(self, path: Path) -> str:
        """SHA-256 of a file, 64 hex digits. A file whose size and time are as remembered is not read again."""
        if (known := self.remembered(path)) is not None:
            return known
        digest = file_digest(path)
        write_json(self._path, {**self._known(), _name(path): {"stamp": stamp(path), "sha256": digest}})
        return digest

    def remembered(self, path: Path) -> str | None:
        """The digest that the file had when it was last read, if its size and time are as they were then."""
        entry = self._known().get(_name(path), {})
        return entry["sha256"] if entry.get("stamp") == stamp(path) else None

    def _known(self) -> dict[str, dict[str, Any]]:
        try:
            return read_json(self._path) if there(self._path) else {}
        except UserError:
            return {}  # only a memory: a damaged one is made anew


def _name(path: Path) -> str:
    """The same in every process: on a store the URL."""
    return shown(path.resolve())
