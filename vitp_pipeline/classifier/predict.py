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


def average_of(policy: str, average: str = "auto") -> str:
    """How a mask's points under a policy are averaged: what is asked for, or for "auto" the policy's own way."""
    if average != "auto":
        return average
    return "log-probabilities" if policy == "peaks" else "probabilities"


def mask_logits_of_points(
    logits: Tensor, points_per_mask: int = 1, temperature: float = 1.0, average: str = "probabilities"
) -> Tensor:
    """Logits of masks from those of their points.

    Args:
        logits: (B, Q·n, K) float32, the n points of each mask in turn.
        points_per_mask: n.
        temperature: divides a mask's log-probabilities. It changes no mask's best class, but the fusion gives more
            weight to a surer name.
        average: "probabilities": the mean of a mask's points (summed in log space, where sure ones do not underflow),
            so that one sure point can name it; "log-probabilities": their geometric mean, so that every point can
            veto. The points of "peaks" are few and chosen, those of "spread" are drawn and some of them stray.
    Returns:
        (B, Q, K) float32.
    """
    if points_per_mask > 1:
        log_probs = logits.log_softmax(-1).unflatten(1, (-1, points_per_mask))
        logits = log_probs.logsumexp(2) if average == "probabilities" else log_probs.mean(2)
    return logits / temperature
