"""What tests do to the files of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitp_pipeline.storage.sealed import read_sealed, write_sealed


def arrays_of(shard_folder: Path, part: int) -> Path:
    """The only file of a part's arrays."""
    (path,) = shard_folder.glob(f"part-{part:04d}-*.zarr.zip")
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a sealed file and seals it again, as somebody would who means harm."""
    content = read_sealed(path)
    change(content)
    write_sealed(path, content)
