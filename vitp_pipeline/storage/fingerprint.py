"""Fingerprints: the SHA-256 of canonical JSON, which decides whether a cached result still holds.

Settings enter by `config.identity.identity_of`, files by their digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vitp_pipeline.storage.layout import open_plain


def fingerprint(identity: dict[str, Any]) -> str:
    """Return the fingerprint of an identity (JSON types only), 64 hex digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """List the differences between two identities, as lines `key: theirs → ours`."""
    lines = []
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_short(b)} → {_short(a)}")
    return lines


def _short(value: Any) -> str:
    if value is None:
        return "(default)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
