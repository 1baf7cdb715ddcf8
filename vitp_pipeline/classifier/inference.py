"""Scores of points with a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.config.generate_proposals import POINT_POLICIES
from vitp_pipeline.runtime.devices import mixed_precision


@torch.inference_mode()
def point_logits(
    model: PointViT,
    images: Tensor,
    points: Tensor,
    flip: bool = False,
    precision: str = "auto",
    valid: Tensor | None = None,
) -> Tensor:
    """Compute logits of points, equally many per image; `image_logits` takes images with different numbers of points.

    Args:
        images: (B, 3, H, W) RGB at the model's size, uint8 or float in [0, 255], on the model's device.
        points: (B, N, 2) float in [−1, 1], (row, col).
        flip: average log-probabilities with those of the flipped image and points.
        precision: "auto", "float32", "bfloat16" or "float16".
        valid: (B, N) bool, False for padding (`pad_points`); None = all points are real.
    Returns:
        (B, N, K) float32.
    """
    pixels = model.normalize(images)
    with mixed_precision(precision, pixels.device):
        logits: Tensor = model(pixels, points, valid).float()
        if flip:
            other = model(pixels.flip(-1), flipped_points(points, images.shape[-1]), valid).float()
            logits = (logits.log_softmax(-1) + other.log_softmax(-1)) / 2
    return logits


def flipped_points(points: Tensor, width: int) -> Tensor:
    """Return (B, N, 2) points in the mirror image of an image of `width` pixels."""
    flipped = points.clone()
    # a pixel's column c becomes W − 1 − c; in [−1, 1) without half pixels that is −p, less one pixel
    flipped[..., 1] = -points[..., 1] - 2 / width
    return flipped


def image_logits(
    model: PointViT,
    images: Tensor,
    points: Sequence[Tensor],
    flip: bool = False,
    precision: str = "auto",
    chunk: int = 0,
    image_ids: Sequence[str] = (),
) -> list[Tensor]:
    """Compute logits of points for images with different numbers of points, independent of each other.

    Args:
        images, flip, precision: as `point_logits`.
        points: for each of the B images (Nᵢ, 2) float in [−1, 1], (row, col), on the model's device; Nᵢ may be 0.
        chunk: 0 = all points of an image in one forward. n > 0: n at a time, as the released code does it
            (`fill_chunks`); no more than B images are in one forward then either.
        image_ids: names of the images, for the random points of a last chunk; only read with `chunk`.
    Returns:
        for each image (Nᵢ, K) float32.
    """
    rows, owner = list(points), list(range(len(points)))
    if chunk:
        chunks = [fill_chunks(own, chunk, name) for own, name in zip(points, image_ids, strict=True)]
        rows = [row for own in chunks for row in own]
        owner = [image for image, own in enumerate(chunks) for _ in own]
    found: list[list[Tensor]] = [[] for _ in points]
    for first in range(0, len(rows), len(points)):
        now = slice(first, first + len(points))
        padded, valid = pad_points(rows[now])
        logits = point_logits(model, images[owner[now]], padded, flip, precision, valid)
        for image, row, values in zip(owner[now], rows[now], logits, strict=True):
            found[image].append(values[: len(row)])
    return [torch.cat(values)[: len(own)] for values, own in zip(found, points, strict=True)]


def pad_points(points: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Points of B images, (Nᵢ, C) each, as one tensor for the model.

    Returns:
        (B, max Nᵢ, C), the missing ones zero, and (B, max Nᵢ) bool that is False there; None if none is missing.
    """
    counts = torch.tensor([len(own) for own in points])
    padded = pad_sequence(list(points), batch_first=True)
    if (counts == counts.max()).all():
        return padded, None
    return padded, (torch.arange(padded.shape[1]) < counts[:, None]).to(padded.device)


def fill_chunks(points: Tensor, chunk: int, image_id: str) -> Tensor:
    """Split the points of an image into chunks of equal size, as the released code does before its model.

    In `oneformer/oneformer_model.py` the model takes exactly n points: they are split in order, and the last chunk is
    filled up with random points of the image. There they differ from run to run; here they follow from the image's
    name alone.

    Args:
        points: (N, 2) float in [−1, 1], (row, col). chunk: n. image_id: any text that identifies the image.
    Returns:
        (⌈N/n⌉ but at least 1, n, 2), the first N points being `points`.
    """
    missing = max(1, -(-len(points) // chunk)) * chunk - len(points)
    seed = int.from_bytes(blake2b(image_id.encode(), digest_size=16).digest(), "little")
    drawn = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (missing, 2)))
    filled: Tensor = torch.cat([points, drawn.to(points)]).unflatten(0, (-1, chunk))
    return filled


def average_of(policy: str, average: str = "auto") -> str:
    """Return how a mask's points are averaged: as asked for, or for "auto" the point policy's own way."""
    if average != "auto":
        return average
    return POINT_POLICIES[policy].average


def mask_logits_of_points(
    logits: Tensor, points_per_mask: int = 1, temperature: float = 1.0, average: str = "probabilities"
) -> Tensor:
    """Compute logits of masks from those of their points.

    Args:
        logits: (B, Q·n, K) float32, n consecutive points per mask.
        points_per_mask: n.
        temperature: divides a mask's log-probabilities. It changes no mask's best class, but the fusion gives more
            weight to a more confident prediction.
        average: "probabilities": the mean of a mask's points (summed in log space against underflow), so
            that one confident point can decide the class; "log-probabilities": their geometric mean, so that every
            point can veto.
    Returns:
        (B, Q, K) float32.
    """
    if points_per_mask > 1:
        log_probs = logits.log_softmax(-1).unflatten(1, (-1, points_per_mask))
        logits = log_probs.logsumexp(2) if average == "probabilities" else log_probs.mean(2)
    return logits / temperature
