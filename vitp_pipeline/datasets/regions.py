"""Regions of a label map: the connected pieces of its classes, their boxes, and coarse versions of them."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets.spec import IGNORE

LEAST_REGION = 0.0005
"""Share of the image below which a connected piece is taken for a crumb of the labeling, not for an object."""


def connected_regions(labels: np.ndarray, least: float = LEAST_REGION) -> tuple[np.ndarray, np.ndarray]:
    """Treat every connected piece (4 neighbors) of every class as an object, for labels without objects.

    Args:
        labels: (H, W) integer class indices, or IGNORE.
        least: pieces of a smaller share of the image are left out.
    Returns:
        ((H, W) int16 or int32 numbers 0..S−1 with IGNORE where there is no region, (S,) int64 classes), in the order of
        classes, then of rows.
    """
    from scipy import ndimage

    numbers = np.full(labels.shape, IGNORE, np.int32)
    classes: list[int] = []
    boxes = ndimage.find_objects(labels.astype(np.int32) + 1)  # IGNORE becomes the background
    for k, box in enumerate(boxes):
        if box is None:
            continue
        pieces, _ = ndimage.label(labels[box] == k)
        areas = np.bincount(pieces.ravel())
        large = areas >= max(1.0, least * labels.size)
        large[0] = False
        number = np.full(len(areas), IGNORE, np.int32)
        number[large] = len(classes) + np.arange(large.sum())
        np.copyto(numbers[box], number[pieces], where=large[pieces])
        classes += [k] * int(large.sum())
    return numbers.astype(number_type(len(classes))), np.array(classes, np.int64)


def number_type(count: int) -> np.dtype:
    """Choose int16 if it holds the numbers below `count`: sorting them is then linear (`sample_points`)."""
    return np.dtype(np.int16 if count <= np.iinfo(np.int16).max else np.int32)


def boxes_of_regions(numbers: np.ndarray, count: int) -> np.ndarray:
    """Compute (count, 4) float64 (top, left, bottom, right) edges of regions, all of which must occur."""
    from scipy import ndimage

    found = ndimage.find_objects(numbers.astype(np.int32) + 1, count)
    return np.array([[rows.start, cols.start, rows.stop, cols.stop] for rows, cols in found], float).reshape(-1, 4)


def coarse_regions(numbers: np.ndarray, erosion: float) -> np.ndarray:
    """Simulate coarse annotation: shrink every region away from its outline and drop its thin parts.

    A pixel is kept if it lies deeper in its region than `erosion` times the region's deepest pixel, depth being the
    distance to the region's outline. The image's border is no outline. Deterministic.

    Args:
        numbers: (H, W) integer region numbers, or IGNORE.
        erosion: from 0 (keep all) to below 1 (keep little more than the deepest pixels).
    Returns:
        (H, W) of the same dtype, IGNORE where pixels were removed. No region vanishes.
    """
    from scipy import ndimage

    outline = np.zeros(numbers.shape, bool)
    for ahead, behind in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = numbers[ahead] != numbers[behind]
        outline[ahead] |= differ
        outline[behind] |= differ
    if not outline.any():
        return numbers.copy()
    depth = 1 + ndimage.distance_transform_edt(~outline)
    shifted = numbers.astype(np.int64) - IGNORE
    deepest = np.zeros(int(shifted.max()) + 1)
    np.maximum.at(deepest, shifted.ravel(), depth.ravel())
    return np.where(depth > erosion * deepest[shifted], numbers, numbers.dtype.type(IGNORE))
