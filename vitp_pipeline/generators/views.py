"""Asks a generator for the proposals of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp_pipeline.generators.base import Generator, Proposals
from vitp_pipeline.geometry import View


def propose(generator: Generator, images: Sequence[np.ndarray]) -> list[Proposals]:
    """Proposals of every image, seen whole, in order.

    Args:
        images: RGB uint8 (H, W, 3), each of any size.
    Raises:
        InputError: an image is of another shape or type.
    """
    frames = [generator.resize(image) for image in images]
    return [
        Proposals(
            found.mask_logits,
            found.class_logits,
            View(image.shape[:2], frame.shape[:2], found.padded, tuple(found.mask_logits.shape[-2:])),
        )
        for image, frame, found in zip(images, frames, generator.forward(frames), strict=True)
    ]
