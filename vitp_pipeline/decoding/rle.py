"""Binary masks as run lengths (COCO's RLE): a mask of six megapixels takes kilobytes."""

from __future__ import annotations

from typing import Any

import numpy as np

Rle = dict[str, Any]
"""{"size": [height, width], "counts": bytes}, as pycocotools has it."""


def encode_mask(mask: np.ndarray) -> Rle:
    """Encode an (H, W) bool mask."""
    from pycocotools import mask as coco

    rle: Rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return rle


def decode_mask(rle: Rle) -> np.ndarray:
    """Decode to (H, W) bool. For run lengths made here or checked by `records`: pycocotools trusts them."""
    from pycocotools import mask as coco

    return np.asarray(coco.decode(rle)).astype(bool)


def mask_area(rle: Rle) -> int:
    """Count the pixels of a mask."""
    from pycocotools import mask as coco

    return int(coco.area(rle))


def mask_box(rle: Rle) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the smallest rectangle around a mask; without a pixel it is (0, 0, 0, 0)."""
    from pycocotools import mask as coco

    left, top, width, height = (int(value) for value in coco.toBbox(rle))
    return top, left, height, width
