"""Which labels of a semantic map stay the same whatever storing did to the masks (docs/storage.md).

Stored masks differ from the generator's in three ways, and each bounds the class scores S_c = Σ_q p_qc·s_q, with s_q
the mask probability, in its own:

* dropped: S_c may have been larger by r_c = Σ over the dropped of p_qc;
* logits off by at most e: an odds ratio s/(1−s) is off by a factor of e^e at most, hence s ≤ g(s') with
  g(s) = e^e·s / (1 + (e^e − 1)·s), which is concave: with P_c = Σ over the kept of p_qc, S_c ≤ P_c·g(S'_c / P_c), and
  the same with −e, convex, from below;
* floored at f: s may have been lower by σ(f), never higher: S_c ≥ … − σ(f)·P_c.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.artifacts.codec import MaskLoss
from vitp_pipeline.assemble.resize import resize_band, taps
from vitp_pipeline.assemble.semantic import band_rows, check_scored, seen_scores
from vitp_pipeline.assemble.upsample import image_logit_band
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View

ROUNDING = 1e-5
"""What float32 may add to the difference of two class scores, both computed from masks of the same logits."""


def score_bounds(scores: Tensor, kept: Tensor, dropped: Tensor, loss: MaskLoss) -> tuple[Tensor, Tensor]:
    """Between what the class scores of the generator's own masks lie.

    Args:
        scores: (..., K) from the stored masks.
        kept: (K,) Σ of the class probabilities over the queries whose masks are stored.
        dropped: (K,) the same over the others.
    Returns:
        (lowest, highest), of the shape of `scores`.
    """
    factor = math.exp(min(loss.logit_error, 80.0))
    share = scores / kept.clamp_min(torch.finfo(torch.float32).tiny)
    highest = scores * factor / (1 + (factor - 1) * share) + dropped
    floored = 0.0 if loss.floor is None else 1 / (1 + math.exp(-loss.floor))
    lowest = scores / (factor - (factor - 1) * share) - floored * kept
    return lowest.clamp_min(0.0), highest


def certain_map(
    mask_logits: Tensor,
    probs: Tensor,
    kept: Tensor,
    view: View,
    protocol: str,
    loss: MaskLoss,
    budget_bytes: int = 256 << 20,
) -> np.ndarray:
    """Where the class with the best score has it under the generator's own masks as well.

    Args:
        mask_logits: (M, h, w) stored logits in the padded frame.
        probs: (Q, K) class probabilities of all queries.
        kept: (M,) integers, the queries of the masks.
        view: whole and upright.
        protocol: one of `assemble.upsample.PROTOCOLS`.
        loss: what storing did to the masks.
        budget_bytes: bound on the temporaries; at least one row is made at a time.
    Returns:
        (H0, W0) bool.
    Raises:
        UsageError, IncompatibleError: as `semantic_scores`.
    """
    stored = probs[kept].to(mask_logits.device, torch.float32)
    check_scored(mask_logits, stored[None], view, protocol)
    if not view.whole:
        raise IncompatibleError("a window or a mirrored view is not an image", "Use one view for certain pixels")
    sums = stored.sum(0), (probs.to(stored).sum(0) - stored.sum(0)).clamp_min(0.0)
    height, width = view.original
    certain = np.zeros((height, width), bool)
    if not len(stored):
        return certain  # nothing is known of any pixel
    rows = max(1, band_rows(mask_logits, stored[None], view, budget_bytes // 4))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        scores = _scores(mask_logits, stored, view, protocol, start, stop)
        certain[start:stop] = _is_certain(scores, *sums, loss).reshape(-1, width).cpu().numpy()
    return certain


def _scores(mask_logits: Tensor, probs: Tensor, view: View, protocol: str, start: int, stop: int) -> Tensor:
    """(pixels, K) of rows [start, stop) of the original: those of `semantic_scores`."""
    if protocol in ("d2", "mmdet"):
        return image_logit_band(mask_logits, view, start, stop).sigmoid_().flatten(1).T @ probs
    rows = taps(view.resized[0], view.original[0])
    first, last = rows.source(start, stop)
    (scores,) = seen_scores(mask_logits, probs[None], view, protocol, first, last)
    return resize_band(scores, first, rows, start, stop, view.original[1]).flatten(1).T


def _is_certain(scores: Tensor, kept: Tensor, dropped: Tensor, loss: MaskLoss) -> Tensor:
    """(P, K) → (P,) bool: the winner's lowest score beats every other class's highest."""
    if scores.shape[1] == 1:
        return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    lowest, highest = score_bounds(scores, kept, dropped, loss)
    winner = scores.argmax(1, keepdim=True)
    others = highest.scatter(1, winner, -1.0).amax(1)
    return lowest.gather(1, winner)[:, 0] > others + ROUNDING
