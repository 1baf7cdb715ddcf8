"""Instances from masks and class probabilities: the rule shared by detectron2-style models and mmdetection.

Mask2Former's and OneFormer's `instance_inference` and mmdetection's `MaskFormerFusionHead` do the same:
take the best `limit` of all (query, class) pairs by class probability, then leave out stuff; a mask is {logit > 0} at
image resolution, its score the class probability times the mean mask probability inside. A mask may appear with several
classes. They differ in `limit` alone: 100 in Mask2Former and mmdetection, the number of queries in OneFormer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vitp_pipeline.artifacts.pixel_groups import PixelGroups
from vitp_pipeline.decoding.rle import Rle, encode_mask
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.upsample import check_frame, check_protocol, mask_logits_at_resized, resize_planes

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
    """The masks as instances have them, made one plane at a time.

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
    found = []
    for inside, plane in _planes(mask_logits, view, protocol):
        pixels = inside if groups is None else inside * groups.sizes
        whole = inside if groups is None else groups.spread(inside)
        quality = float((plane * pixels).sum(dtype=np.float64) / (pixels.sum() + _EPSILON))
        found.append(InstanceMask(encode_mask(whole), quality))
    return found


def _planes(mask_logits: Tensor, view: View, protocol: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(H0, W0) bool and the probabilities, float32, query by query."""
    check_protocol(protocol)
    check_frame(mask_logits, view)
    for query in range(len(mask_logits)):
        plane = mask_logits_at_resized(mask_logits[query : query + 1], view)
        if protocol == "mmseg1":
            chances = resize_planes(plane.sigmoid(), view.original)[0].cpu().numpy()
            yield chances > 0.5, chances
        else:
            plane = resize_planes(plane, view.original)[0]
            yield (plane > 0).cpu().numpy(), plane.sigmoid().cpu().numpy()
