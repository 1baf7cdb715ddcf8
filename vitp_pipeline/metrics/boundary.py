"""Boundaries of masks and label maps, for boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021).

The boundary of a mask are its pixels at most d pixels away from its outside, diagonals counting as one step; beyond the
image's border lies outside. d = 2 % of the image's diagonal, rounded, at least 1. Boundary IoU is the IoU of two
boundaries; boundary AP matches by the smaller of mask IoU and boundary IoU.
"""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets.spec import IGNORE

RATIO = 0.02


def boundary_width(size: tuple[int, int], ratio: float = RATIO) -> int:
    """d of an image of (H, W)."""
    return max(1, round(ratio * float(np.hypot(*size))))


def mask_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The boundary of one mask.

    Args:
        mask: (H, W) bool.
        width: d ≥ 1 in pixels.
    Returns:
        (H, W) bool, a part of `mask`.
    """
    from scipy import ndimage

    boundary = np.zeros(mask.shape, bool)
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return boundary
    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)  # beyond it all is outside
    inner = ndimage.minimum_filter(mask[box].view(np.uint8), 2 * width + 1, mode="constant", cval=0)
    boundary[box] = mask[box] & (inner == 0)
    return boundary


def label_boundaries(labels: np.ndarray, width: int) -> np.ndarray:
    """Mark the boundary pixels of a label map, (H, W) bool, for all classes at once: each is taken for one mask."""
    from scipy import ndimage

    size = 2 * width + 1
    low = ndimage.minimum_filter(labels, size, mode="constant", cval=int(labels.min()) - 1)
    return np.asarray(low != ndimage.maximum_filter(labels, size, mode="nearest"))


def boundary_areas(labels: np.ndarray, truth: np.ndarray, width: int, classes: int) -> np.ndarray:
    """Count one image's areas for mean boundary IoU over a dataset.

    Args:
        labels: (H, W) class indices 0..K−1, or IGNORE where nothing is predicted.
        truth: (H, W) class indices or IGNORE: such pixels end a mask and do not count.
        width: d in pixels.
        classes: K.
    Returns:
        (K, 3) int64: pixels of both boundaries, of the ground truth's, of the prediction's.
    """
    valid = truth != IGNORE
    ours, theirs = valid & label_boundaries(labels, width), valid & label_boundaries(truth, width)
    sets = truth[ours & theirs & (labels == truth)], truth[theirs], labels[ours & (labels != IGNORE)]
    return np.stack([np.bincount(s, minlength=classes) for s in sets], 1).astype(np.int64)
