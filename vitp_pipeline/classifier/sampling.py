"""Ground-truth points to train on."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets import IGNORE

NO_LABEL = "no pixel has a label"
"""Why an image is left out that has nothing to learn from."""


def sample_points(
    labels: np.ndarray, count: int, rng: np.random.Generator, how: str = "class-balanced"
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draws labelled pixels with replacement.

    Args:
        labels: (H, W) integer class indices, IGNORE where there is none.
        count: number of points N.
        how: "class-balanced": N classes uniformly from those present, then a uniform pixel of each (facts §2.2);
            "uniform": uniform over the labelled pixels.
    Returns:
        ((N, 2) int64 (row, col), (N,) int64 classes), or None when no pixel has a label.
    """
    flat = labels.ravel()
    if how == "uniform":
        pixels = np.flatnonzero(flat != IGNORE)
        if not len(pixels):
            return None
        chosen = pixels[rng.integers(len(pixels), size=count)]
    else:
        # a stable sort of small integers is a radix sort: linear, and it groups the pixels of each class
        order = np.argsort(flat, kind="stable")
        counts = np.bincount(flat.astype(np.int64) - IGNORE)
        present = np.flatnonzero(counts[1:]) + 1
        if not len(present):
            return None
        starts = np.cumsum(counts) - counts
        classes = present[rng.integers(len(present), size=count)]
        chosen = order[starts[classes] + rng.integers(counts[classes])]
    points = np.stack(np.divmod(chosen, labels.shape[1]), axis=1)
    return points, flat[chosen].astype(np.int64)
