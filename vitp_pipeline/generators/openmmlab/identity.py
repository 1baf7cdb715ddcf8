"""Identity of a generator, told without building it (and without importing torch)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vitp_pipeline.generators.openmmlab.configs import config_sources
from vitp_pipeline.storage.digests import Digests


def describe(config: Path, checkpoint: Path | None, digests: Digests) -> dict[str, Any]:
    """The text of the config and of all its bases, and the content of the checkpoint, as digests."""
    text = hashlib.sha256()
    for source in config_sources(config):
        text.update(source.read_bytes())
    return {
        "config": text.hexdigest(),
        "checkpoint": digests.of(checkpoint) if checkpoint else "random weights",
    }
