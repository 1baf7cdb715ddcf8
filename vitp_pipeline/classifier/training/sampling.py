"""Sample ground-truth points and boxes to train on."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets import IGNORE

NO_LABEL = "no pixel has a label"
"""Reason for leaving out an image without labels."""


def sample_points(
    labels: np.ndarray, count: int, rng: np.random.Generator, how: str = "class-balanced"
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw labeled pixels with replacement.

    Args:
        labels: (H, W) integer class indices, or region numbers for "instance-balanced"; IGNORE where there is none.
            As int16 it is several times as fast as with int32.
        count: number of points N.
        how: "class-balanced": N classes uniformly from those present, then a uniform pixel of each (paper §3.4);
            "instance-balanced": the same with the image's regions in place of its classes;
            "uniform": uniform over the labeled pixels.
    Returns:
        ((N, 2) int64 (row, col), (N,) int64 classes or regions), or None when no pixel has a label.
    """
    flat = labels.ravel()
    chosen = _uniform(flat, count, rng) if how == "uniform" else _balanced(flat, count, rng)
    if chosen is None:
        return None
    points = np.stack(np.divmod(chosen, labels.shape[1]), axis=1)
    return points, flat[chosen].astype(np.int64)


def sample_boxes(
    classes: np.ndarray, count: int, rng: np.random.Generator, how: str = "class-balanced"
) -> np.ndarray | None:
    """Draw boxes with replacement.

    Args:
        classes: (M,) integer class of every box.
        how: "class-balanced": a class uniformly from those present, then a uniform box of it; otherwise uniform over
            the boxes, each being an instance.
    Returns:
        (count,) int64 indices of boxes, or None when there is none.
    """
    return _balanced(classes, count, rng) if how == "class-balanced" else _uniform(classes, count, rng)


def _uniform(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """Indices of values that are not IGNORE, each as likely as the others."""
    known = np.flatnonzero(values != IGNORE)
    return known[rng.integers(len(known), size=count)] if len(known) else None


def _balanced(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """Indices of values: first one of the values present but IGNORE, then one of the places that hold it."""
    counts = np.bincount(values.astype(np.int64) - IGNORE)
    # a stable sort of small integers is a radix sort: linear, and it groups the places of each value
    order = np.argsort(values, kind="stable")
    present = np.flatnonzero(counts[1:]) + 1
    if not len(present):
        return None
    starts = np.cumsum(counts) - counts
    drawn = present[rng.integers(len(present), size=count)]
    return np.take(order, starts[drawn] + rng.integers(counts[drawn]))
