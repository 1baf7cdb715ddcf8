"""Share of each patch that a mask covers: the mask prompt of the classifier.

Patches are those of the classifier's input, which is the whole original image resized. All frames between the image and
the mask logits differ by scale and by padding at the right and bottom only, so a patch is a rectangle in each of them,
and a share of its area needs no resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vitp_pipeline.geometry import Size, View


@lru_cache(maxsize=256)
def cell_shares(cells: int, extent: float, patches: int) -> np.ndarray:
    """Compute the overlap of an axis's patches with the cells of a finer or coarser grid, as shares.

    Args:
        cells: length of the axis.
        extent: how many of the cells, counted from the first, the patches divide among them, 0 < extent ≤ cells.
        patches: number of patches.
    Returns:
        (patches, cells) float32, read-only; rows sum to 1.
    """
    edges = np.arange(patches + 1) * (extent / patches)
    low = np.maximum(edges[:-1, None], np.arange(cells))
    high = np.minimum(edges[1:, None], np.arange(cells) + 1)
    shares: np.ndarray = (np.maximum(high - low, 0) * (patches / extent)).astype(np.float32)
    shares.flags.writeable = False
    return shares


def region_coverage(regions: np.ndarray, numbers: Sequence[int] | np.ndarray, grid: Size) -> np.ndarray:
    """The shares of the patches that regions of a label map cover.

    Args:
        regions: (H, W) integers.
        numbers: N values of it.
        grid: (rows, columns) of the patches, which divide the map among them.
    Returns:
        (N, rows·columns) float32 in [0, 1], row-major.
    """
    rows = cell_shares(regions.shape[0], float(regions.shape[0]), grid[0])
    columns = cell_shares(regions.shape[1], float(regions.shape[1]), grid[1])
    planes = [(rows @ (regions == number).astype(np.float32) @ columns.T).ravel() for number in numbers]
    return np.stack(planes) if planes else np.zeros((0, grid[0] * grid[1]), np.float32)


def mask_coverage(mask_logits: np.ndarray, view: View, grid: Size) -> np.ndarray:
    """The mean mask probability of the patches of the original image.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame of `view`; what lies in the padding is left out.
        view: how the generator saw the image.
        grid: (rows, columns) of the patches.
    Returns:
        (Q, rows·columns) float32 in [0, 1], row-major.
    """
    extent = [m * r / p for m, r, p in zip(view.mask, view.resized, view.padded, strict=True)]
    rows, columns = (cell_shares(view.mask[axis], extent[axis], grid[axis]) for axis in (0, 1))
    logits = np.asarray(mask_logits, np.float32)
    probs: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits))  # the sigmoid, without overflow
    shares: np.ndarray = rows @ probs @ columns.T
    return shares.reshape(len(probs), -1)


def flipped(coverage: np.ndarray, grid: Size) -> np.ndarray:
    """(N, rows·columns) of masks to that of the same masks on the flipped image."""
    return coverage.reshape(-1, *grid)[:, :, ::-1].reshape(coverage.shape)
