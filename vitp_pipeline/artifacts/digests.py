"""SHA-256 of large files, remembered: a checkpoint of gigabytes is hashed once, not at every start."""

from __future__ import annotations

from pathlib import Path

from vitp_pipeline.artifacts.files import read_json, write_json
from vitp_pipeline.errors import UserError
from vitp_pipeline.fingerprint import file_digest


class Digests:
    """Digests by path, size and modification time, kept in a JSON file of the run."""

    def __init__(self, run: Path) -> None:
        self._path = run / "digests.json"

    def of(self, path: Path) -> str:
        """SHA-256 of a file, 64 hex digits. A file whose size and time are as remembered is not read again."""
        status = path.stat()
        key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        try:
            known = read_json(self._path) if self._path.exists() else {}
        except UserError:
            known = {}  # only a memory: a damaged one is made anew
        if known.get(key, {}).get("stamp") == stamp:
            return known[key]["sha256"]
        digest = file_digest(path)
        write_json(self._path, {**known, key: {"stamp": stamp, "sha256": digest}})
        return digest
