"""An image as the classifier sees it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitp_pipeline.geometry import Size


def prepare_image(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (3, height, width) uint8, resized once (PIL bilinear, antialiased, as the authors')."""
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
