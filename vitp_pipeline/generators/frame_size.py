"""Input sizes of the mask generator families."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size


def shortest_edge_size(size: Size, shortest: int, longest: int) -> Size:
    """Apply detectron2's rule: the shorter side becomes `shortest`, unless the longer one would exceed `longest`.

    Both sides are rounded half up, where transformers' own processors cut off: 512 × 683 becomes 640 × 854 there 853.
    """
    height, width = size
    factor = shortest / min(size)
    scaled = (float(shortest), factor * width) if height < width else (factor * height, float(shortest))
    if max(scaled) > longest:
        shrink = longest / max(scaled)
        scaled = (scaled[0] * shrink, scaled[1] * shrink)
    return int(scaled[0] + 0.5), int(scaled[1] + 0.5)


def size_inside(size: Size, side: int) -> Size:
    """Apply EoMT's rule for panoptic and instance models: as large as fits into a square of `side`."""
    return _scaled(size, min(side / length for length in size))


def size_around(size: Size, side: int) -> Size:
    """Apply EoMT's rule for semantic models, which see one square of `side` after another: as small as fills one."""
    return _scaled(size, max(side / length for length in size))


def _scaled(size: Size, factor: float) -> Size:
    return round(size[0] * factor), round(size[1] * factor)


def resize_bilinear(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize with Pillow's bilinear filter, which averages when it shrinks: uint8 (H, W, 3) → uint8 (*size, 3).

    Raises:
        InputError: the image is of another shape or type.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"an image must be RGB uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
