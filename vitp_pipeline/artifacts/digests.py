"""SHA-256 of large files, remembered: a checkpoint of gigabytes is hashed once, not at every start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.files import read_json, write_json
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
        entry = {"stamp": _stamp(path), "sha256": file_digest(path)}
        write_json(self._path, {**self._known(), str(path.resolve()): entry})
        return entry["sha256"]

    def remembered(self, path: Path) -> str | None:
        """The digest that the file had when it was last read, if its size and time are as they were then."""
        entry = self._known().get(str(path.resolve()), {})
        return entry["sha256"] if entry.get("stamp") == _stamp(path) else None

    def _known(self) -> dict[str, dict[str, Any]]:
        try:
            return read_json(self._path) if self._path.exists() else {}
        except UserError:
            return {}  # only a memory: a damaged one is made anew


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
