"""Types of run.json and done.json, as far as other code reads them: a run may come from an untrusted place.

The seal of a file says that it is as it was written (`storage.sealed`); this says that it was written by vitp, or
could have been. A stage lacks most of the keys, and others are let through.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

Scalar = str | int | float | bool
Table = dict[str, Scalar | list[Scalar]]
"""Settings of a stage, those that differ from their default; their ranges are `config.validation`'s to check."""


class _Open(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


class Manifest(_Open):
    """A dataset: `classes` are name, label value, and whether it is a thing."""

    name: str
    kind: str
    classes: list[tuple[str, int, bool]]
    ignore: list[int]
    polygons: dict[str, int] = {}


class Streamed(_Open):
    """Settings of the stages that `evaluate --stream` ran itself."""

    classifier: str = ""
    classify: Table = {}
    class_agnostic: bool = False


class Identity(_Open):
    """The identity of any stage: fingerprints of what it was made from, and settings."""

    stage: str = ""
    manifest: Manifest | None = None
    settings: Table = {}
    class_agnostic: bool = False
    proposals: str = ""
    class_scores: str = ""
    classifier: str = ""
    points: str = ""
    alphas: list[float] = []
    stream: Streamed | None = None


class Provenance(_Open):
    """Date, versions and command of a stage, and the SHA-256 of fetched files by their names, for people."""

    created: str = ""
    python: str = ""
    versions: dict[str, str] = {}
    command: str = ""
    classifier: str = ""
    generator: str = ""
    threads: str = ""
    fetched: dict[str, str] = {}


class ShardEnd(_Open):
    """`done.json` of a shard: counts, bytes of its parts, (image id, reason) of failed images, digests by file name."""

    run: str
    images: NonNegativeInt
    parts: NonNegativeInt
    bytes: NonNegativeInt
    failed: list[tuple[str, str | None]]
    files: dict[str, str]


class TrainingEnd(_Open):
    """`done.json` of a training: images, bytes of the model, reasons by image id, digests by file name."""

    run: str
    images: NonNegativeInt
    bytes: NonNegativeInt
    left_out: dict[str, str]
    files: dict[str, str]


def check_end(kind: type[ShardEnd | TrainingEnd], value: Any) -> dict[str, Any]:
    """Return the value if it has that type. Raises ValueError, which names the key."""
    _check(kind, value)
    found: dict[str, Any] = value
    return found


def check_identity(value: Any) -> dict[str, Any]:
    """Return the value if it is an `Identity`. Raises ValueError, which names the key."""
    _check(Identity, value)
    found: dict[str, Any] = value
    return found


def check_provenance(value: Any) -> dict[str, Any]:
    """Return the value if it is a `Provenance`, missing fields empty. Raises ValueError, which names the key."""
    return _check(Provenance, value).model_dump()


def _check(kind: type[_Open], value: Any) -> _Open:
    try:
        return kind.model_validate_json(json.dumps(value, allow_nan=False))  # of JSON a list may be a tuple
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
