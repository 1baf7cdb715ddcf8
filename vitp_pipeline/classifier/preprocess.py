"""An image as the classifier sees it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torch.nn import functional as F

from vitp_pipeline.geometry import Size, View, size_of


def prepare_image(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (3, height, width) uint8, resized once (PIL bilinear, antialiased, as the authors')."""
    return np.ascontiguousarray(_resized(image, size).transpose(2, 0, 1))


def prepare_view(image: np.ndarray, view: View, size: Size) -> np.ndarray:
    """Make the classifier's picture of what entered the generator, as the authors' `oneformer/oneformer_model.py` does.

    There it is the generator's own tensor: resized to the test size in bytes, flipped, padded with zeros after the
    normalization, and resized again with antialiasing. Here the tensor is made anew from the image, by Pillow as theirs
    is; other generators' inputs may differ from it in the way they resize and pad.

    Args:
        image: (H, W, 3) uint8 RGB, the whole upright image. view: how the generator saw it. size: of the result.
    Returns:
        (3, height, width) float32 in [0, 255], the padding in the mean color of ImageNet.
    """
    if view.through is not None:
        image = _resized(image, view.through)
    frame = _resized(image, view.resized)
    frame = frame[:, ::-1] if view.flip else frame
    top, left, height, width = view.seen
    part = frame[top : top + height, left : left + width]
    padded = np.empty((*view.padded, 3), np.float32)
    padded[:] = np.multiply(IMAGENET_DEFAULT_MEAN, 255.0)
    padded[:height, :width] = part
    planes = torch.from_numpy(padded).permute(2, 0, 1)[None]
    return F.interpolate(planes, size, mode="bilinear", antialias=True)[0].numpy()


def _resized(image: np.ndarray, size: Size) -> np.ndarray:
    if size_of(image) == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
