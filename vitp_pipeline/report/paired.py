"""Counts per image that add up, and the metrics of their sums: what a paired bootstrap resamples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vitp_pipeline.evaluation.count_reader import image_areas, read_rows
from vitp_pipeline.evaluation.definition import headline_variants
from vitp_pipeline.metrics.bootstrap import miou, pixel_accuracy
from vitp_pipeline.report import figures
from vitp_pipeline.report.loaded_evaluation import COLUMNS, StoredEvaluation

Sums = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]
"""(images, K, 3) numbers that add up, and the figure of their sum."""


def with_rows(stored: StoredEvaluation, variant: str) -> StoredEvaluation:
    """Return the evaluation with the rows of a variant, read on demand: most comparisons need only those loaded."""
    if variant in stored.evaluation.compared:
        return stored
    number = headline_variants(stored.evaluation)[variant]
    return replace(stored, rows=read_rows(stored.evaluation, COLUMNS, [number]))


def sums_of(stored: StoredEvaluation, variant: str, images: np.ndarray) -> dict[str, Sums]:
    """Collect the counts of every metric that has an interval: mIoU, pixel accuracy, PQ, mask accuracy.

    Args:
        variant: "fused", "classifier" or "generator".
        images: (N,) numbers of images in the rows.
    """
    found: dict[str, Sums] = {}
    tasks = figures.tasks_of(stored)
    stored = with_rows(stored, variant)
    if "semantic" in tasks:
        areas = image_areas(stored.evaluation, stored.rows, headline_variants(stored.evaluation)[variant])[images]
        found |= {"mIoU": (areas, miou), "pixel accuracy": (areas, pixel_accuracy)}
    if "panoptic" in tasks:
        found["PQ"] = (panoptic_areas(stored, variant)[images], panoptic_quality)
    if len(stored.rows.columns["masks"]["image"]):
        found["mask accuracy"] = (mask_counts(stored, variant)[images], pixel_accuracy)
    return found


def mask_counts(stored: StoredEvaluation, variant: str) -> np.ndarray:
    """(images, 1, 3) int64: correctly classified masks, masks with a majority ground-truth class, 0."""
    masks = stored.rows.columns["masks"]
    classified = np.zeros((len(stored.rows.images), 1, 3), np.int64)
    np.add.at(classified[:, 0, 0], masks["image"], masks[variant] == masks["label"])
    np.add.at(classified[:, 0, 1], masks["image"], 1)
    return classified


def panoptic_areas(stored: StoredEvaluation, variant: str) -> np.ndarray:
    """Collect the counts that a paired bootstrap of PQ resamples.

    Returns:
        (images, K, 3) float64: summed IoU of the matches, segments of the ground truth (independent of
        predictions), predicted segments without forgiven ones.
    """
    e = stored.rows.columns["panoptic"]
    chosen = e["variant"] == headline_variants(stored.evaluation)[variant]
    out = np.zeros((len(stored.rows.images), len(stored.classes), 3))
    at = e["image"][chosen], e["class"][chosen]
    for column, values in enumerate((e["iou"], e["tp"] + e["fn"], e["tp"] + e["fp"])):
        np.add.at(out[..., column], at, values[chosen])
    return out


def panoptic_quality(total: np.ndarray) -> np.ndarray:
    """(…, K, 3) sums of `panoptic_areas` → (…) PQ over the classes that occur."""
    segments = total[..., 1] + total[..., 2]  # 2 TP + FN + FP
    seen = segments > 0
    quality = np.divide(2 * total[..., 0], segments, out=np.zeros_like(segments), where=seen)
    count = seen.sum(-1)
    mean: np.ndarray = np.divide(quality.sum(-1), count, out=np.full(np.shape(count), np.nan), where=count > 0)
    return mean
