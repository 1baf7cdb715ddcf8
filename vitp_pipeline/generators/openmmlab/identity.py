"""Compute the identity of a generator without building it (and without importing torch)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.proposals import RANDOM_WEIGHTS
from vitp_pipeline.generators.openmmlab.configs import config_sources
from vitp_pipeline.storage.digests import Digests


def describe(config: Path, checkpoint: Path | None, digests: Digests) -> dict[str, Any]:
    """Return digests of the config with all its bases, and of the checkpoint."""
    text = hashlib.sha256()
    for source in config_sources(config):
        text.update(source.read_bytes())
    return {
        "config": text.hexdigest(),
        "checkpoint": digests.of(checkpoint) if checkpoint else RANDOM_WEIGHTS,
    }
