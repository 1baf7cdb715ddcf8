"""Part of a run's identity that its settings are."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitp_pipeline.validation.keys import keys_of


def identity_of(settings: Any) -> dict[str, Any]:
    """Fields of a table that belong to its fingerprint and differ from their default, as JSON has them.

    Those that have their default stay out, so that an option added later, whose default is the old behavior, leaves old
    caches valid. Hence a default never changes.
    """
    keys = keys_of(type(settings))
    identity = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if keys[field.name].enters == "value" and value != field.default:
            identity[field.name] = list(value) if isinstance(value, tuple) else value
    return identity
