"""Average precision of instances, exactly as COCO's evaluation (pycocotools' COCOeval, "segm") computes it.

Matching (`match`) is done per image: a row records for every detection at which thresholds and areas it matched. Only
sorting by score and summation need the whole dataset (`average_precision`). So no masks are kept, and no split into
shards can change a figure.

COCO's rules: in every image and class, detections in order of falling score take the free ground truth with the largest
IoU at or above the threshold (ties: the later one). Crowds, and what lies outside the area's range, are taken only when
nothing else is, and then the detection counts neither way; a crowd can be taken many times, and with it IoU is the
overlap's share of the detection. Unmatched detections outside the range count neither way. Of every image and class the
best 100 count. Precision is made falling, read at recalls 0, 0.01, … 1, and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitp_pipeline.decoding.rle import Rle, decode_mask, encode_mask
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.metrics.boundary import mask_boundary

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
MOST = 100
"""Detections of an image and class that count."""


@dataclass(frozen=True)
class TrueInstances:
    """The things of an image's ground truth.

    Attributes:
        masks: G run lengths.
        categories: (G,) class indices.
        crowd: (G,) bool, regions of many objects.
        void: run lengths of the unlabeled pixels, of the image's size.
        areas: (G,) float64, as annotated; None = pixels. They decide which of `AREAS` an instance belongs to, not how
            masks overlap; Cityscapes' rule does not use them.
    """

    masks: list[Rle]
    categories: np.ndarray
    crowd: np.ndarray
    void: Rle
    areas: np.ndarray | None = None


@dataclass(frozen=True)
class Detections:
    """Detections of an image under one variant of class scores. `mask` are indices into the image's list of masks.

    Attributes:
        mask, categories: (D,) integers.
        scores: (D,) float32 in [0, 1].
    """

    mask: np.ndarray
    categories: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.mask)


@dataclass(frozen=True)
class Matches:
    """Rows of one image for the figures of a dataset, by class, then by falling score.

    Attributes:
        categories, scores: (D,) of the detections that count.
        hit, ignored: (D,) int64, bit a·T + t: matched at area a and threshold t; counts neither way there.
    """

    categories: np.ndarray
    scores: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class Overlaps:
    """Overlaps of M masks with G ground-truth instances, computed once for all variants of class scores.

    Attributes:
        iou: (M, G) float64; with crowds the share of the mask.
        areas, true_areas: (M,), (G,) pixels, or the annotation's `area` of an instance.
    """

    iou: np.ndarray
    areas: np.ndarray
    true_areas: np.ndarray


def overlaps(masks: Sequence[Rle], truth: TrueInstances) -> Overlaps:
    """IoU and areas of an image's masks and ground truth.

    Raises:
        IncompatibleError: masks and ground truth differ in size.
    """
    inter, areas, true_areas = intersections(masks, truth.masks)
    iou = _ratio(inter, areas, true_areas, truth.crowd)
    return Overlaps(iou, areas, true_areas if truth.areas is None else truth.areas)


def boundary_overlaps(masks: Sequence[Rle], truth: TrueInstances, plain: Overlaps, width: int) -> Overlaps:
    """`overlaps` with the smaller of mask IoU and boundary IoU, crowds left as they are; areas are the masks'."""
    ours, theirs = ([encode_mask(mask_boundary(decode_mask(m), width)) for m in side] for side in (masks, truth.masks))
    inter, areas, true_areas = intersections(ours, theirs)
    iou = _ratio(inter, areas, true_areas, np.zeros(len(theirs), bool))
    return Overlaps(np.where(truth.crowd, plain.iou, np.minimum(plain.iou, iou)), plain.areas, plain.true_areas)


def intersections(ours: Sequence[Rle], theirs: Sequence[Rle]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M, G) int64 common pixels of two lists of masks, and the pixels of each."""
    from pycocotools import mask as coco

    sizes = {tuple(m["size"]) for m in (*ours, *theirs)}
    if len(sizes) > 1:
        raise IncompatibleError(f"masks and ground truth differ in size: {sorted(sizes)}")
    areas, true_areas = (np.asarray(coco.area(list(m)) if m else [], np.int64) for m in (ours, theirs))
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)), np.int64), areas, true_areas
    share = np.asarray(coco.iou(list(ours), list(theirs), [1] * len(theirs)))  # of ours that lies inside
    return np.rint(share * areas[:, None]).astype(np.int64), areas, true_areas


def _ratio(inter: np.ndarray, areas: np.ndarray, true_areas: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    whole = np.where(crowd[None], areas[:, None], areas[:, None] + true_areas[None] - inter)
    return np.asarray(np.divide(inter, whole, out=np.zeros(inter.shape), where=inter > 0))


def match(found: Detections, at: Overlaps, truth: TrueInstances) -> Matches:
    """Match one image's detections with its ground truth, at all thresholds and areas at once."""
    order = np.lexsort((-found.scores.astype(np.float64), found.categories))
    categories = found.categories[order]
    rank = np.arange(len(order)) - np.searchsorted(categories, categories)  # within its class
    order, categories = order[rank < MOST], categories[rank < MOST]
    rows, shape = found.mask[order], (len(order), len(AREAS), len(THRESHOLDS))
    hit, ignored = np.zeros(shape, bool), np.broadcast_to(_outside(at.areas[rows])[:, :, None], shape).copy()
    for category in np.intersect1d(categories, truth.categories):
        mine, theirs = np.flatnonzero(categories == category), np.flatnonzero(truth.categories == category)
        spare = _outside(at.true_areas[theirs]).T | truth.crowd[theirs]  # (A, G): taken only when nothing else is
        _match_class(mine, at.iou[np.ix_(rows[mine], theirs)], spare, truth.crowd[theirs], hit, ignored)
    return Matches(categories, found.scores[order], pack(hit), pack(ignored))


def _match_class(
    rows: np.ndarray, iou: np.ndarray, spare: np.ndarray, crowd: np.ndarray, hit: np.ndarray, ignored: np.ndarray
) -> None:
    """Set `hit` and `ignored` (all, A, T) at the `rows` of one class's detections, best first. iou: (rows, G)."""
    needed = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((len(AREAS), len(THRESHOLDS), iou.shape[1]), bool)
    for d in np.flatnonzero(iou.max(1) >= needed[0]):
        able = (free | crowd) & (iou[d] >= needed)  # (A, T, G)
        real, other = able & ~spare[:, None], able & spare[:, None]
        taken = np.where(real.any(2), _last_best(real, iou[d]), _last_best(other, iou[d]))
        a, t = np.nonzero(able.any(2))
        free[a, t, taken[a, t]] = False
        hit[rows[d], a, t], ignored[rows[d], a, t] = True, spare[a, taken[a, t]]


def _outside(areas: np.ndarray) -> np.ndarray:
    """(N,) pixels → (N, A) bool."""
    low, high = np.array(list(AREAS.values())).T
    return np.asarray((areas[:, None] < low) | (areas[:, None] > high))


def _last_best(able: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """(A, T, G) bool, (G,) → (A, T) index of the largest IoU, the last one of equals."""
    return np.asarray(able.shape[2] - 1 - np.where(able, iou, -1.0)[..., ::-1].argmax(2))


def pack(flags: np.ndarray) -> np.ndarray:
    """(D, …) bool → (D,) int64, the first flag in the lowest bit."""
    flat = flags.reshape(len(flags), int(np.prod(flags.shape[1:])))
    return flat.astype(np.int64) @ (np.int64(1) << np.arange(flat.shape[1], dtype=np.int64))


def unpack(bits: np.ndarray, areas: int = len(AREAS), thresholds: int = len(THRESHOLDS)) -> np.ndarray:
    """(D,) int64 → (A, T, D) bool."""
    shifts = np.arange(areas * thresholds, dtype=np.int64).reshape(areas, thresholds, 1)
    return (bits >> shifts & 1).astype(bool)


def true_counts(truth: TrueInstances, true_areas: np.ndarray, classes: int) -> np.ndarray:
    """(K, A) int64: how many ground-truth instances of an image there are to find."""
    counted = ~_outside(true_areas) & ~truth.crowd[:, None]
    counts = np.zeros((classes, len(AREAS)), np.int64)
    np.add.at(counts, truth.categories, counted)
    return counts


@dataclass(frozen=True)
class AveragePrecision:
    """Precision at every threshold, recall, class and area.

    Attributes:
        precision: (T, R, K, A) float64, −1 where the ground truth has no such instance.
    """

    precision: np.ndarray

    def figures(self) -> dict[str, float]:
        """AP, AP50, AP75, AP_small, AP_medium, AP_large in [0, 1]; nan where there is nothing to find."""
        p = self.precision
        figures = {"AP": _mean(p[..., 0]), "AP50": _mean(p[:1, ..., 0]), "AP75": _mean(p[5:6, ..., 0])}
        return figures | {f"AP_{name}": _mean(p[..., a]) for a, name in enumerate(AREAS) if a}

    def per_class(self) -> np.ndarray:
        """(K,) float64 AP, nan for classes without ground truth."""
        return np.array([_mean(self.precision[:, :, k, 0]) for k in range(self.precision.shape[2])])


def average_precision(
    categories: np.ndarray, scores: np.ndarray, hit: np.ndarray, ignored: np.ndarray, truth: np.ndarray
) -> AveragePrecision:
    """Figures of a data set from the rows of its images.

    Args:
        categories, scores, hit, ignored: (D,) `Matches` of all images, concatenated in the order of the images' numbers
            (it decides between equal scores, as in pycocotools).
        truth: (K, A) int64 summed `true_counts`.
    """
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(truth), len(AREAS)), -1.0)
    order = np.argsort(categories, kind="stable")
    starts = np.searchsorted(categories[order], np.arange(len(truth) + 1))
    for k in np.flatnonzero(truth.any(1)):
        mine = order[starts[k] : starts[k + 1]]
        mine = mine[np.argsort(-scores[mine].astype(np.float64), kind="stable")]
        matched, out = unpack(hit[mine]), unpack(ignored[mine])
        right, wrong = (np.cumsum(x & ~out, axis=2).astype(np.float64) for x in (matched, ~matched))
        for a in np.flatnonzero(truth[k]):
            recall = right[a] / truth[k, a]
            precise = right[a] / (right[a] + wrong[a] + np.spacing(1))
            precise = np.maximum.accumulate(precise[:, ::-1], axis=1)[:, ::-1]
            for t in range(len(THRESHOLDS)):
                at = np.searchsorted(recall[t], RECALLS, side="left")
                reached = at < len(mine)
                precision[t, :, k, a] = 0.0
                precision[t, reached, k, a] = precise[t, at[reached]]
    return AveragePrecision(precision)


def _mean(precision: np.ndarray) -> float:
    there = precision[precision > -1]
    return float(np.mean(there)) if len(there) else float("nan")
