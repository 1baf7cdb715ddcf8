"""Masks as pycocotools' run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

Rle = dict[str, Any]
"""{"size": [height, width], "counts": bytes}."""


def encode_mask(mask: np.ndarray) -> Rle:
    """(H, W) bool → run lengths."""
    from pycocotools import mask as coco

    rle: Rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return rle


def decode_mask(rle: Rle) -> np.ndarray:
    """Run lengths → (H, W) bool."""
    from pycocotools import mask as coco

    return np.asarray(coco.decode(rle)).astype(bool)
