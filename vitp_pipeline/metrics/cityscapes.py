"""Average precision of instances by the Cityscapes benchmark's definition (cityscapesScripts,
evalInstanceLevelSemanticLabeling).

A prediction finds a ground-truth instance of its class when IoU > 0.5, 0.55, … 0.95; of several the most confident
counts and the others are false. Only instances of at least 100 pixels that are not groups (crowds) are to be found. A
prediction on a smaller instance or a group counts neither way, and so does one that finds nothing and of which more
than the threshold's share lies on void, groups and small instances. AP is the area under the precision-recall curve.

Written here because the package's own tool reads PNG files in Cityscapes' layout only and does not run with numpy 2.4.
The segments of the ground truth must not overlap, which in a panoptic map they cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp_pipeline.decoding.rle import Rle
from vitp_pipeline.metrics.instances import Detections, Matches, TrueInstances, intersections, pack, unpack

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
SMALLEST = 100


class MaskCounts:
    """Pixels that an image's masks share with its ground truth, counted once for all variants of class scores."""

    def __init__(self, masks: Sequence[Rle], truth: TrueInstances) -> None:
        self.inter, self.areas, self.true_areas = intersections(masks, truth.masks)
        self.void = intersections(masks, [truth.void])[0].sum(1)


def match(found: Detections, at: MaskCounts, truth: TrueInstances) -> Matches:
    """Match one image's detections with its ground truth; bit t of hit and ignored is of threshold t."""
    rows = found.mask
    order = np.lexsort((-found.scores.astype(np.float64), found.categories))
    order = order[at.areas[rows[order]] > 0]  # an empty mask is no prediction
    rows = rows[order]
    same = found.categories[order, None] == truth.categories[None]
    inter, areas = at.inter[rows] * same, at.areas[rows]
    iou = inter / (areas[:, None] + at.true_areas[None] - inter)
    small = at.true_areas < SMALLEST
    wanted = ~truth.crowd & ~small
    # the benchmark counts a group that is also small twice
    forgiven = (at.void[rows] + inter @ truth.crowd.astype(np.int64) + inter @ small.astype(np.int64)) / areas
    hit, ignored = (np.zeros((len(order), len(THRESHOLDS)), bool) for _ in range(2))
    for t, threshold in enumerate(THRESHOLDS):
        meets = iou > threshold
        takes = meets & wanted
        first = takes & (np.cumsum(takes, axis=0) == 1)  # rows of a class stand in order of falling score
        hit[:, t] = first.any(1)
        ignored[:, t] = np.where(meets.any(1), ~takes.any(1), forgiven > threshold)
    return Matches(found.categories[order], found.scores[order], pack(hit), pack(ignored))


def true_counts(truth: TrueInstances, true_areas: np.ndarray, classes: int) -> np.ndarray:
    """(K, 1) int64: how many ground-truth instances of an image there are to find."""
    wanted = ~truth.crowd & (true_areas >= SMALLEST)
    return np.bincount(truth.categories[wanted], minlength=classes)[:, None].astype(np.int64)


def average_precision(
    categories: np.ndarray, scores: np.ndarray, hit: np.ndarray, ignored: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """(K, T) float64 AP in [0, 1] of a data set, nan for classes with nothing to find.

    Args:
        categories, scores, hit, ignored: (D,) `Matches` of all images, in any order.
        truth: (K, 1) int64 summed `true_counts`.
    """
    result = np.full((len(truth), len(THRESHOLDS)), np.nan)
    for k in np.flatnonzero(truth[:, 0]):
        mine = categories == k
        matched, out = (unpack(bits[mine], 1, len(THRESHOLDS))[0] for bits in (hit, ignored))
        for t in range(len(THRESHOLDS)):
            result[k, t] = _area(matched[t][~out[t]], scores[mine][~out[t]].astype(np.float64), int(truth[k, 0]))
    return result


def _area(right: np.ndarray, scores: np.ndarray, wanted: int) -> float:
    """Area under the precision-recall curve, equal scores taken together; `wanted` instances are to be found."""
    if not len(right):
        return 0.0
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)  # the curve's points: all from this score on
    below = np.append(0, np.cumsum(right[order]))[first]
    true = right.sum() - below
    precision = np.append(true / (len(right) - first), 1.0)
    recall = np.append(true / (true + below + (wanted - right.sum())), 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.dot(precision, (around[:-2] - around[2:]) / 2))


def figures(aps: np.ndarray) -> dict[str, float]:
    """AP and AP50 in [0, 1] of (K, T) values; nan when there is nothing to find."""
    there = aps[~np.isnan(aps[:, 0])]
    if not len(there):
        return {"AP": float("nan"), "AP50": float("nan")}
    return {"AP": float(np.mean(there)), "AP50": float(np.mean(there[:, 0]))}
