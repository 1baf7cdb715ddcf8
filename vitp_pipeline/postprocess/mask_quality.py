"""Confidence of a mask in its own pixels, absent from point scores (paper §8)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.upsample import iter_mask_probabilities


def mask_quality(
    mask_logits: Tensor, view: View, protocol: str, threshold: float = 0.5, pixels: np.ndarray | None = None
) -> Tensor:
    """The mean mask probability over {probability > threshold} on the original image.

    What Mask2Former multiplies the class score of an instance with; it has there an ε in the denominator, here a mask
    without such a pixel has quality 0.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        view: how the generator saw the image.
        protocol: where sigmoid stands: see `postprocess.upsample`.
        pixels: (H0·W0,) int64, of how many pixels each one's area is (`artifacts.pixel_groups`); None = of itself.
    Returns:
        (Q,) float32 in {0} ∪ (threshold, 1], on the device of the masks.
    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shape and view disagree.
    """
    values = []
    weights = None if pixels is None else torch.from_numpy(pixels).to(mask_logits.device).view(view.original)
    for plane in iter_mask_probabilities(mask_logits, view, protocol):
        inside = plane > threshold
        chosen = inside if weights is None else inside * weights.double()
        total = (plane * chosen).sum(dtype=torch.float64)  # exact enough that a mask of ones has quality 1
        values.append(total / chosen.sum().clamp(min=1))
    return torch.stack(values).float() if values else mask_logits.new_zeros(0, dtype=torch.float32)
