"""Instances from masks and class probabilities: the rule shared by detectron2-style models and mmdetection.

Mask2Former's and OneFormer's `instance_inference` and mmdetection's `MaskFormerFusionHead` do the same:
take the best `limit` of all (query, class) pairs by class probability, then leave out stuff; a mask is {logit > 0} at
image resolution, its score the class probability times the mean mask probability inside. A mask may appear with several
classes. They differ in `limit` alone: 100 in Mask2Former and mmdetection, the number of queries in OneFormer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.artifacts.pixel_groups import PixelGroups
from vitp_pipeline.decoding.rle import Rle, encode_mask, encode_part
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.upsample import PositivePart, check_protocol, iter_positive_parts

_EPSILON = 1e-6  # in the mean mask probability's denominator, as in both code bases


@dataclass(frozen=True)
class Pairs:
    """The best (query, class) pairs of an image, best first.

    Attributes:
        queries, categories: (D,) int64.
        probs: (D,) float32 class probabilities, above 0.
    """

    queries: np.ndarray
    categories: np.ndarray
    probs: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def of(self, chosen: np.ndarray) -> Pairs:
        """The pairs where (D,) bool `chosen` is true."""
        return Pairs(self.queries[chosen], self.categories[chosen], self.probs[chosen])


def best_pairs(probs: Tensor | np.ndarray, things: np.ndarray, limit: int) -> Pairs:
    """The best `limit` of all Q·K pairs, and of these the things.

    Ties go to the lower query, then to the lower class. Pairs of probability 0 (of the upper bounds) are no detections.

    Args:
        probs: (Q, K) class probabilities, of all queries: also of those whose masks were not stored.
        things: (K,) bool.
        limit: before stuff is left out, as in the official code; 0 = Q.
    """
    probs = np.asarray(probs.cpu() if isinstance(probs, Tensor) else probs, np.float32)
    things = np.asarray(things, bool)
    if probs.ndim != 2 or probs.shape[1] != len(things):
        raise IncompatibleError(f"probabilities {probs.shape} (Q, K) for {len(things)} classes")
    flat = probs.ravel()
    limit = min(limit or len(probs), flat.size)
    best = np.argsort(-flat, kind="stable")[:limit]
    queries, categories = np.divmod(best, probs.shape[1])
    chosen = things[categories] & (flat[best] > 0)
    return Pairs(queries, categories, flat[best]).of(chosen)


@dataclass(frozen=True)
class InstanceMask:
    """A mask at image resolution: its run lengths, and its mean probability inside, in [0, 1]."""

    rle: Rle
    quality: float


def instance_masks(
    mask_logits: Tensor, view: View, protocol: str, groups: PixelGroups | None = None
) -> list[InstanceMask]:
    """The masks as instances have them, made one by one, each around its positive pixels.

    `mmseg1`, which defines no instances, takes {probability > 0.5} after its own order of operations.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        view: how the generator saw the image.
        protocol: where sigmoid stands: see `postprocess.upsample`.
        groups: of the image's pixels, where the masks and the view are of one row of them.
    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shape and view disagree.
    """
    check_protocol(protocol)
    early, found = protocol == "mmseg1", []
    for part in iter_positive_parts(mask_logits, view, early):
        if part is None:
            part = PositivePart(0, 0, mask_logits.new_zeros((1, 1), dtype=torch.float32))
        values = part.values.cpu().numpy()
        inside = values > (0.5 if early else 0.0)
        chances = values[inside] if early else torch.from_numpy(values[inside]).sigmoid().numpy()
        if groups is None:
            total, area = chances.sum(dtype=np.float64), len(chances)
            rle = encode_part(inside, part.top, part.left, view.original)
        else:
            pixels = groups.sizes[part.left : part.left + inside.shape[1]][None][inside]
            total, area = (chances * pixels).sum(dtype=np.float64), pixels.sum()
            row = np.zeros(view.original, bool)
            row[:, part.left : part.left + inside.shape[1]] = inside
            rle = encode_mask(groups.spread(row))
        quality = float(total / (area + _EPSILON))
        found.append(InstanceMask(rle, quality))
    return found
