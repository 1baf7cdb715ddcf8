"""Pixels of a semantic map whose label provably does not depend on mask compression (docs/storage.md).

Compression changes a mask in three ways. Each gives an interval that holds the class scores S_c = Σ_q p_qc·s_q of the
generator's own masks, with s_q the mask probability:

* dropped: S_c may have been larger by r_c = Σ over the dropped of p_qc;
* a logit x was off by at most e(x): s_q lies between σ(x − e) and σ(x + e);
* floored at f: what is at the floor may have been lower by any amount, so there s_q may have been 0.

The sums of the lowest and of the highest s_q, computed and resized like scores, are bounds of S_c.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.artifacts.mask_codec import MaskLoss
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.resize import lerp, resize_band
from vitp_pipeline.postprocess.semantic import band_rows, check_scored
from vitp_pipeline.postprocess.upsample import image_logit_band, resized_band

ROUNDING = 1e-5
"""Float32 error of the difference of two class scores computed from masks of the same logits."""


_NEAR = 1e-4
"""How far above the floor the mean of logits at or below it may lie."""


def probability_bounds(logits: Tensor, loss: MaskLoss) -> tuple[Tensor, Tensor]:
    """Bound the mask probabilities of the generator's own masks.

    Args:
        logits: float32 of the stored masks, of any shape, cells or upsampled.
    Returns:
        (lowest, highest), of the shape of `logits`.
    """
    errors = loss.errors(logits)
    lowest = (logits - errors).sigmoid_()
    if loss.floor is not None:
        lowest.masked_fill_(logits <= loss.floor + _NEAR, 0.0)
    return lowest, (logits + errors).sigmoid_()


def certain_map(
    mask_logits: Tensor,
    probs: Tensor,
    kept: Tensor,
    view: View,
    protocol: str,
    loss: MaskLoss,
    budget_bytes: int = 256 << 20,
) -> np.ndarray:
    """Mark the pixels where the best class provably is the best under the generator's own masks as well.

    Args:
        mask_logits: (M, h, w) stored logits in the padded frame.
        probs: (Q, K) class probabilities of all queries.
        kept: (M,) integers, the queries of the masks.
        view: whole and upright.
        protocol: one of `config.choices.PROTOCOLS`.
        loss: of the mask compression.
        budget_bytes: limit for temporaries; at least one row is made at a time.
    Returns:
        (H0, W0) bool.
    Raises:
        UsageError, IncompatibleError: as `semantic_scores`.
    """
    stored = probs[kept].to(mask_logits.device, torch.float32)
    check_scored(mask_logits, stored[None], view, protocol)
    if not view.whole:
        raise IncompatibleError("a window or a flipped view is not an image", "Use one view, or set certain = false")
    dropped = (probs.to(stored).sum(0) - stored.sum(0)).clamp_min(0.0)
    height, width = view.original
    certain = np.zeros((height, width), bool)
    if not len(stored):
        return certain  # no guarantee for any pixel
    rows = max(1, band_rows(mask_logits, stored[None], view, budget_bytes // 4))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        scores, lowest, highest = score_bounds(mask_logits, stored, view, protocol, loss, start, stop)
        found = _is_certain(scores, lowest, highest + dropped)
        certain[start:stop] = found.reshape(-1, width).cpu().numpy()
    return certain


def score_bounds(
    mask_logits: Tensor, probs: Tensor, view: View, protocol: str, loss: MaskLoss, start: int, stop: int
) -> Iterator[Tensor]:
    """Yield class scores of rows [start, stop) of the original, and bounds of those of the generator's own masks.

    Args:
        mask_logits: (M, h, w) stored logits in the padded frame.
        probs: (M, K) float32 class probabilities of their queries.
    Yields:
        (pixels, K) those of `semantic_scores`; the lower bound; the upper bound without the dropped queries.
    """
    at_image = protocol in ("d2", "mmdet")
    # rows read of the original, of the resized image, of the stored masks
    rows, stored_rows = lerp(view.resized[0], view.original[0]), lerp(view.mask[0], view.padded[0])
    first, last = rows.source(start, stop)
    top, bottom = stored_rows.source(first, last)
    if at_image:
        logits = image_logit_band(mask_logits, view, start, stop)
    elif protocol == "mmseg0":
        logits = mask_logits[:, top:bottom].float()
    else:
        logits = resized_band(mask_logits, view, first, last)
    for likely in (logits.sigmoid(), *probability_bounds(logits, loss)):
        if at_image:
            yield likely.flatten(1).T @ probs
            continue
        scores = (probs.T @ likely.flatten(1)).reshape(-1, *likely.shape[1:])
        if protocol == "mmseg0":
            scores = resize_band(scores, top, stored_rows, first, last, view.padded[1])[..., : view.seen[3]]
        yield resize_band(scores, first, rows, start, stop, view.original[1]).flatten(1).T


def _is_certain(scores: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """(P, K) → (P,) bool: True where the lower bound of the best class exceeds the upper bounds of all others."""
    if scores.shape[1] == 1:
        return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    winner = scores.argmax(1, keepdim=True)
    others = highest.scatter(1, winner, -1.0).amax(1)
    return lowest.gather(1, winner)[:, 0] > others + ROUNDING
