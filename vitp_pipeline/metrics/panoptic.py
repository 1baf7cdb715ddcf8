"""Panoptic quality, exactly as the COCO panoptic task defines it.

A prediction and a ground-truth segment of one class match when IoU > 0.5, where void pixels of the prediction
are taken out of the union; then both have no other partner. Crowd segments match nothing and are never
missed. An unmatched prediction is forgiven when more than half of it lies on void and on crowds of its own
class. PQ = Σ IoU / (TP + FP/2 + FN/2), SQ = Σ IoU / TP, RQ = TP / (TP + FP/2 + FN/2), averaged over the
classes with TP + FP + FN > 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.metrics.joint_histogram import joint_counts, runs_of_pairs

_MAX_ID = 1 << 24  # COCO writes ids into three bytes


class PredictedSegment(Protocol):
    """Attributes that are read of a predicted segment (e.g. `postprocess.panoptic.Segment`)."""

    @property
    def id(self) -> int: ...
    @property
    def category(self) -> int: ...


class TrueSegment(PredictedSegment, Protocol):
    """Attributes that are read of a ground-truth segment (e.g. `datasets.GroundTruthSegment`)."""

    @property
    def iscrowd(self) -> bool: ...


@dataclass(frozen=True)
class PanopticCounts:
    """Per class: true positives, false positives, false negatives (K,) int64; summed IoU of the matches (K,)
    float64.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    iou: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int) -> PanopticCounts:
        tp, fp, fn = (np.zeros(num_classes, np.int64) for _ in range(3))
        return cls(tp, fp, fn, np.zeros(num_classes))

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        if len(self.tp) != len(other.tp):
            raise IncompatibleError(f"panoptic counts of {len(self.tp)} and {len(other.tp)} classes do not add")
        return PanopticCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou)


def count(
    pred_ids: np.ndarray,
    pred_segments: Sequence[PredictedSegment],
    gt_ids: np.ndarray,
    gt_segments: Sequence[TrueSegment],
    num_classes: int,
) -> PanopticCounts:
    """Match the segments of one image.

    Args:
        pred_ids: (H, W) integers, 0 = unassigned, else the id of a predicted segment.
        pred_segments: the predicted segments: unique ids from 1, each with at least one pixel, class index
            0..K−1.
        gt_ids: (H, W) integers, 0 = void, else the id of a ground-truth segment, at most 2^24.
        gt_segments: the ground truth's segments. One without a pixel is a false negative, as in panopticapi.
            If several crowds share a class all of them forgive (panopticapi reads the last; COCO has at most
            one).
        num_classes: K.
    Returns:
        The counts; areas are counted in the maps, not read from the annotation.
    Raises:
        IncompatibleError: map sizes differ; predicted ids or classes are not consistent.
        InputError: the ground truth's ids or classes are not consistent.
    """
    if pred_ids.shape != gt_ids.shape:
        raise IncompatibleError(f"prediction {pred_ids.shape} and ground truth {gt_ids.shape} differ in size")
    pred_ids, gt_ids, lengths = runs_of_pairs(pred_ids, gt_ids)
    pred_index = _dense(pred_ids, pred_segments, num_classes, IncompatibleError, "prediction")
    gt_index = _dense(gt_ids, gt_segments, num_classes, InputError, "ground truth")
    # row 0: void, column 0: unassigned
    joint = joint_counts(gt_index, pred_index, lengths, (len(gt_segments) + 1, len(pred_segments) + 1))

    pred_area, gt_area = joint.sum(0)[1:], joint.sum(1)[1:]
    if not pred_area.all():
        raise IncompatibleError("a predicted segment has no pixel in the prediction's id map")
    pred_class = np.array([s.category for s in pred_segments], np.int64)
    gt_class = np.array([s.category for s in gt_segments], np.int64)
    crowd = np.array([s.iscrowd for s in gt_segments], bool)
    same_class = gt_class[:, None] == pred_class[None]

    inter, void = joint[1:, 1:], joint[0, 1:]
    union = pred_area[None] + gt_area[:, None] - inter - void[None]
    candidate = same_class & ~crowd[:, None] & (inter > 0)  # so the union is not empty
    iou = np.divide(inter, union, out=np.zeros(inter.shape), where=candidate)
    match = iou > 0.5
    missed = ~match.any(1) & ~crowd
    forgiven = void + (inter * (same_class & crowd[:, None])).sum(0)
    false = ~match.any(0) & ~(forgiven / pred_area > 0.5)

    matched_gt, matched_pred = np.nonzero(match)
    matched_class = gt_class[matched_gt]
    return PanopticCounts(
        np.bincount(matched_class, minlength=num_classes),
        np.bincount(pred_class[false], minlength=num_classes),
        np.bincount(gt_class[missed], minlength=num_classes),
        np.bincount(matched_class, weights=iou[matched_gt, matched_pred], minlength=num_classes).astype(np.float64),
    )


@dataclass(frozen=True)
class PanopticScores:
    """Averages in [0, 1] over `classes` classes; nan when there are none."""

    pq: float
    sq: float
    rq: float
    classes: int


class PanopticQuality:
    """The state over a data set: `counts` adds up over images, shards and machines."""

    def __init__(
        self, num_classes: int, things: Sequence[bool] | np.ndarray, counts: PanopticCounts | None = None
    ) -> None:
        """Args: K; (K,) bool, True for countable classes; stored counts to go on from."""
        self.things = np.asarray(things, bool)
        if self.things.shape != (num_classes,):
            raise IncompatibleError(f"{self.things.shape} thing flags for {num_classes} classes")
        self.num_classes = num_classes
        self.counts = PanopticCounts.zeros(num_classes) + (counts or PanopticCounts.zeros(num_classes))

    def update(
        self,
        pred_ids: np.ndarray,
        pred_segments: Sequence[PredictedSegment],
        gt_ids: np.ndarray,
        gt_segments: Sequence[TrueSegment],
    ) -> PanopticCounts:
        """Add one image and return its own counts; arguments and errors as `count`."""
        counts = count(pred_ids, pred_segments, gt_ids, gt_segments, self.num_classes)
        self.counts = self.counts + counts
        return counts

    def merge(self, other: PanopticQuality) -> None:
        """Add another state; IncompatibleError when the classes differ."""
        if not np.array_equal(self.things, other.things):
            raise IncompatibleError("panoptic states of different classes do not add")
        self.counts = self.counts + other.counts

    def per_class(self) -> dict[str, np.ndarray]:
        """`pq`, `sq`, `rq`: (K,) float64, nan for classes that neither ground truth nor counted predictions
        hold.

        A class without a match has pq = sq = rq = 0.
        """
        c = self.counts
        weight = c.tp + 0.5 * c.fp + 0.5 * c.fn
        nan = np.full(self.num_classes, np.nan)
        seen = weight > 0
        return {
            "pq": np.divide(c.iou, weight, out=nan.copy(), where=seen),
            "sq": np.divide(c.iou, np.maximum(c.tp, 1), out=nan.copy(), where=seen),
            "rq": np.divide(c.tp, weight, out=nan.copy(), where=seen),
        }

    def summary(self) -> dict[str, PanopticScores]:
        """Averages over `all`, `things` and `stuff`."""
        per_class = self.per_class()
        groups = {"all": np.ones_like(self.things), "things": self.things, "stuff": ~self.things}
        return {name: _average(per_class, group & ~np.isnan(per_class["pq"])) for name, group in groups.items()}


def _average(per_class: dict[str, np.ndarray], chosen: np.ndarray) -> PanopticScores:
    n = int(chosen.sum())
    pq, sq, rq = (float(per_class[key][chosen].mean()) if n else float("nan") for key in ("pq", "sq", "rq"))
    return PanopticScores(pq, sq, rq, n)


def _dense(
    ids: np.ndarray, segments: Sequence[PredictedSegment], num_classes: int, error: type[Exception], name: str
) -> np.ndarray:
    """Ids (R,) → (R,) int64: 0 for id 0, i + 1 for the id of `segments[i]`."""
    known = np.array([0] + [s.id for s in segments], np.int64)
    if len(np.unique(known)) != len(known) or known.min() < 0 or known.max() > _MAX_ID:
        raise error(f"the {name}'s segment ids are not unique numbers from 1 to 2^24")
    if any(not 0 <= s.category < num_classes for s in segments):
        raise error(f"a segment of the {name} has a class outside 0..{num_classes - 1}")
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    dense = order[place]
    if (known[dense] != ids).any():
        raise error(f"the {name}'s id map holds an id that no segment has")
    return dense
