"""What decides whether a cached result still holds.

A fingerprint is the SHA-256 of canonical JSON. Into it go the things that change results; fields marked
`identity=False` (batch size, workers, device) stay out, and so do fields that have their default value, so
that an option added
later, whose default is the old behaviour, leaves old caches valid. (Hence: a default never changes.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from vitp_pipeline.limits import Limits


def setting(default: Any = dataclasses.MISSING, *, identity: bool = True, help: str = "", **limits: Any) -> Any:
    """A dataclass field that knows whether it is part of the fingerprint, and its `Limits`: least=0, choices=…"""
    metadata = {"identity": identity, "help": help, "limits": Limits(**limits)}
    if isinstance(default, (list, dict)):
        raise TypeError("settings are immutable; use a tuple")
    return dataclasses.field(default=default, metadata=metadata)


def identity_of(config: Any) -> dict[str, Any]:
    """The fields of a settings dataclass that belong to its fingerprint and differ from their default."""
    identity = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("identity", True) and value != field.default:
            identity[field.name] = _plain(value)
    return identity


def fingerprint(identity: dict[str, Any]) -> str:
    """64 hex digits of an identity (JSON types only)."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, as lines `key: theirs → ours`."""
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


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    return list(value) if isinstance(value, tuple) else value
