"""Semantic segmentation scores from a confusion matrix that adds up over images, shards and machines."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.metrics.joint_histogram import joint_counts, runs_of_pairs

AVERAGES = ("present", "union")


class Confusion:
    """Counts of (ground truth, prediction) pixel pairs.

    Attributes:
        counts: (K, K + 1) int64, rows ground truth, columns prediction, the last where there is none. Pixels without a
            label are not counted.
    """

    def __init__(self, num_classes: int, counts: np.ndarray | None = None) -> None:
        """Empty, or continued from stored `counts` (K, K + 1)."""
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)
        if counts is not None:
            if np.shape(counts) != self.counts.shape:
                raise IncompatibleError(f"confusion counts {np.shape(counts)} for {num_classes} classes")
            self.counts += np.asarray(counts, np.int64)

    def update(self, pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
        """Add one image.

        Args:
            pred: (H, W) integers in 0..K−1 wherever the ground truth has a label, or IGNORE where nothing is predicted.
            gt: (H, W) integers in 0..K−1 or IGNORE.
        Returns:
            (K, K + 1) int64 counts of this image alone.
        Raises:
            IncompatibleError: sizes differ, or the prediction has a class outside 0..K−1.
            InputError: the ground truth has one.
        """
        counts = pair_counts(pred, gt, self.num_classes)
        self.counts += counts
        return counts

    def merge(self, other: Confusion) -> None:
        """Add another state; IncompatibleError when the number of classes differs."""
        if other.num_classes != self.num_classes:
            raise IncompatibleError(f"confusions of {self.num_classes} and {other.num_classes} classes do not add")
        self.counts += other.counts

    def __add__(self, other: Confusion) -> Confusion:
        total = Confusion(self.num_classes, self.counts)
        total.merge(other)
        return total

    def areas(self) -> np.ndarray:
        """(K, 3) int64: intersection, ground-truth pixels, predicted pixels per class (see
        `metrics.bootstrap`).
        """
        return areas(self.counts)

    def ious(self) -> np.ndarray:
        """(K,) float64 intersection / union in [0, 1]; nan where the union is empty."""
        return ious(self.areas())

    def miou(self, classes: str = "present") -> float:
        """Mean IoU in [0, 1]; nan when no class counts.

        Args:
            classes: "present" averages the classes that the ground truth holds. "union" averages the classes
                that the ground truth *or* the predictions hold (on labeled pixels): this is mmsegmentation's
                IoUMetric. They differ when
                a class is predicted that the ground truth never shows: it scores 0 under "union" and does not
                count under "present". So only "present" averages the same classes for every set of
                predictions.
        """
        return float(mean_iou(self.areas(), classes))

    def pixel_accuracy(self) -> float:
        """Share of labeled pixels that are classified right; nan when there is none."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")

    def class_accuracies(self) -> np.ndarray:
        """(K,) float64 recall per class; nan where the ground truth lacks the class."""
        return _ratio(np.diag(self.counts), self.counts.sum(1))

    def mean_accuracy(self) -> float:
        """Mean of `class_accuracies` over the classes that the ground truth holds; nan when there is none."""
        return mean_accuracy(self.areas())


def pair_counts(pred: np.ndarray, gt: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K + 1) int64 counts of one image; arguments and errors as `Confusion.update`."""
    if pred.shape != gt.shape:
        raise IncompatibleError(f"prediction {pred.shape} and ground truth {gt.shape} differ in size")
    if not gt.size:
        return np.zeros((num_classes, num_classes + 1), np.int64)
    truth, predicted, lengths = runs_of_pairs(gt, pred)
    if truth.min() < IGNORE or truth.max() >= num_classes:
        raise InputError(f"the ground truth holds a label outside 0..{num_classes - 1}", "Check the manifest's classes")
    labeled = truth != IGNORE
    truth, predicted, lengths = truth[labeled], predicted[labeled], lengths[labeled]
    if predicted.size and (predicted.min() < IGNORE or predicted.max() >= num_classes):
        raise IncompatibleError(f"the prediction holds a class outside 0..{num_classes - 1}")
    predicted = np.where(predicted == IGNORE, num_classes, predicted)
    return joint_counts(truth, predicted, lengths, (num_classes, num_classes + 1))


def areas(counts: np.ndarray) -> np.ndarray:
    """(…, K, K + 1) counts → (…, K, 3): intersection, ground-truth area, predicted area."""
    predicted = counts[..., :-1]
    return np.stack([np.diagonal(predicted, axis1=-2, axis2=-1), counts.sum(-1), predicted.sum(-2)], -1)


def ious(areas: np.ndarray) -> np.ndarray:
    """(…, K, 3) areas → (…, K) float64 IoU, nan where the union is empty."""
    return _ratio(areas[..., 0], areas[..., 1] + areas[..., 2] - areas[..., 0])


def mean_iou(areas: np.ndarray, classes: str = "present") -> np.ndarray:
    """(…, K, 3) areas → (…) float64, averaged as in `Confusion.miou`."""
    if classes not in AVERAGES:
        raise ValueError(f"classes must be one of {AVERAGES}, not {classes!r}")
    values = ious(areas)
    counted = areas[..., 1] > 0 if classes == "present" else ~np.isnan(values)
    return _ratio(np.where(counted, values, 0.0).sum(-1), counted.sum(-1))


def mean_accuracy(areas: np.ndarray) -> float:
    """(K, 3) areas → mean recall of the classes that the ground truth holds; nan when there is none."""
    values = _ratio(areas[:, 0], areas[:, 1])
    return float(values[~np.isnan(values)].mean()) if areas[:, 1].any() else float("nan")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    whole = np.asarray(whole, np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))
