"""Derive the settings' part of a run's identity."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitp_pipeline.validation.keys import keys_of


def identity_of(settings: Any) -> dict[str, Any]:
    """Collect the fields of a table that enter its fingerprint and differ from their default, as JSON types.

    Defaults are left out, so that a new option whose default is the old behavior keeps old caches valid. Therefore a
    default must never change.
    """
    keys = keys_of(type(settings))
    identity = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if keys[field.name].enters == "value" and value != field.default:
            identity[field.name] = list(value) if isinstance(value, tuple) else value
    return identity
