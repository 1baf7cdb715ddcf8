"""PNG files of label values and of segment ids, as other tools read them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.storage.atomic_files import write_whole


def write_labels(path: Path, spec: DatasetSpec, classes: np.ndarray, colored: bool) -> None:
    """Write (H, W) class indices as a PNG of label values: of 8 bits, `colored` with a palette; of 16 bits where any of
    the manifest's labels needs them, so that all files of a dataset have the same form.
    """
    if max(spec.void_label, *(info.label for info in spec.classes)) > 255:
        write_png(path, spec.label_values(classes).astype(np.uint16))
    else:
        write_png(path, spec.label_values(classes).astype(np.uint8), palette(spec) if colored else None)


def palette(spec: DatasetSpec) -> list[tuple[int, int, int]]:
    """Make a palette of 256 colors by label value."""
    colors = [(0, 0, 0)] * 256
    for info in spec.classes:
        if info.label < 256:
            colors[info.label] = info.color
    return colors


def rgb_of_ids(ids: np.ndarray) -> np.ndarray:
    """Encode (H, W) segment ids as (H, W, 3) uint8, R + 256·G + 65536·B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


def write_png(path: Path, pixels: np.ndarray, palette: list[tuple[int, int, int]] | None = None) -> None:
    """Write (H, W) or (H, W, 3) pixels as a PNG. Raises StorageError."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette([channel for color in palette for channel in color])
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_whole(path, content.getbuffer())
