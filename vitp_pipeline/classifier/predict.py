"""Scores of points with a trained classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.devices import mixed_precision


@torch.inference_mode()
def point_logits(
    model: PointViT, images: Tensor, points: Tensor, flip: bool = False, precision: str = "auto"
) -> Tensor:
    """Logits of points.

    Args:
        images: (B, 3, H, W) uint8 RGB at the model's size, on the model's device.
        points: (B, N, 2) float in [−1, 1], (row, col).
        flip: average log-probabilities with those of the mirrored image and points.
        precision: "auto", "float32", "bfloat16" or "float16".
    Returns:
        (B, N, K) float32.
    """
    pixels = model.normalise(images)
    with mixed_precision(precision, pixels.device):
        logits = model(pixels, points).float()
        if flip:
            # a pixel's column c becomes W − 1 − c; in [−1, 1) without half pixels that is −p, less one pixel
            mirrored = points.clone()
            mirrored[..., 1] = -points[..., 1] - 2 / images.shape[-1]
            other = model(pixels.flip(-1), mirrored).float()
            logits = (logits.log_softmax(-1) + other.log_softmax(-1)) / 2
    return logits


def mask_logits_of_points(logits: Tensor, points_per_mask: int = 1, temperature: float = 1.0) -> Tensor:
    """Logits of masks from those of their points.

    Args:
        logits: (B, Q·n, K) float32, the n points of each mask in turn.
        points_per_mask: n. The probabilities of a mask's points are averaged; in log space, where sure ones do not
            underflow.
        temperature: divides a mask's log-probabilities. It changes no mask's best class, but the fusion gives more
            weight to a surer name.
    Returns:
        (B, Q, K) float32.
    """
    if points_per_mask > 1:
        logits = logits.log_softmax(-1).unflatten(1, (-1, points_per_mask)).logsumexp(2)
    return logits / temperature
