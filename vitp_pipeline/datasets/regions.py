"""Regions of a label map: the connected pieces of its classes, their boxes, deepest pixels, and coarse versions."""

from __future__ import annotations

import math

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


def deepest_pixel(inside: np.ndarray) -> tuple[int, int]:
    """Return the pixel of (h, w) bool farthest from a False one and from what lies beyond the edge, of equal ones the
    first by rows.

    A distance transform takes 40 bytes and 150 ns a pixel. That of blocks of k × k pixels, of which only the whole ones
    are inside, bounds the one of pixels: depth is k times that of the block, to within √2 (k − 1). So only pixels of
    the deepest blocks are measured (`_deepest_of`).
    """
    from scipy.ndimage import distance_transform_edt

    around = np.pad(inside, 1)
    height, width = around.shape
    if around.size > _LARGE and max(around.shape) < 2**15:
        k = _BLOCK
        padded = np.pad(around, ((0, -height % k), (0, -width % k)))
        blocks = padded.reshape(padded.shape[0] // k, k, -1, k).all((1, 3))
        depth = k * distance_transform_edt(np.pad(blocks, 1))[1:-1, 1:-1]
        slack = math.sqrt(2) * (k - 1) + 1e-6
        row, col = _deepest_of(around, depth + slack >= depth.max() - slack, int(depth.max() + slack) + 1)
    else:
        place = distance_transform_edt(around).argmax()
        row, col = divmod(int(place), width)
    return row - 1, col - 1


_LARGE, _BLOCK = 2**17, 8
"""Pixels from which blocks pay, and the side of one."""


def _deepest_of(around: np.ndarray, near: np.ndarray, reach: int) -> tuple[int, int]:
    """Return the deepest pixel of some blocks, of equal ones the first by rows.

    A pixel's squared depth is the least, over the columns, of its squared distance to the column plus the squared
    distance along it to a False pixel.

    Args:
        around: (h, w) bool, False along all edges, of sides below 2**15.
        near: blocks of `_BLOCK` pixels to search.
        reach: no pixel is deeper.
    """
    height, width = around.shape
    rows = (np.flatnonzero(near.any(1))[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
    rows = rows[rows < height]
    along = np.minimum(_since_outside(around, rows), _since_outside(around[::-1], height - 1 - rows[::-1])[::-1])
    columns = np.arange(width, dtype=np.int32)
    bounds = along.copy()
    for line, row in zip(bounds, rows, strict=True):
        outside = np.flatnonzero(~around[row]).astype(np.int32)
        after = outside[np.searchsorted(outside, columns).clip(max=len(outside) - 1)]
        before = outside[np.searchsorted(outside, columns, "right") - 1]
        np.minimum(line, np.minimum(columns - before, after - columns), out=line)
        line[~near[row // _BLOCK].repeat(_BLOCK)[:width]] = 0
    bounds **= 2
    along **= 2
    highest, place = 0, (0, 0)
    for number in np.argsort(-bounds.max(1), kind="stable"):
        own = np.flatnonzero(bounds[number] >= max(1, highest))
        for start in range(0, len(own), _AT_ONCE):
            some = own[start : start + _AT_ONCE].astype(np.int32)
            part = slice(max(0, int(some[0]) - reach), int(some[-1]) + reach + 1)
            squares = ((some[:, None] - columns[part]) ** 2 + along[number, part]).min(1)
            best = int(squares.argmax())
            found = int(rows[number]), int(some[best])
            if squares[best] > highest or (squares[best] == highest and found < place):
                highest, place = squares[best], found
    return place


_AT_ONCE = 64
"""Pixels measured at a time."""


def _since_outside(around: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Count, in some ascending rows, the steps up to the last False pixel of each column: (R, w) int32."""
    found = np.empty((len(rows), around.shape[1]), np.int32)
    last, done = np.zeros(around.shape[1], np.int32), 0
    for place, row in enumerate(rows):
        for passed in range(done, row + 1):
            np.copyto(last, np.int32(passed), where=~around[passed])
        done = row + 1
        found[place] = row - last
    return found
