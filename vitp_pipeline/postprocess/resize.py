"""Bilinear resizing, one part of the image at a time.

The grid is that of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` without
antialiasing: output index i looks at the source coordinate max(0, (i + 0.5)·n_in/n_out − 0.5), hence at two
neighboring source indices. Knowing which ones lets a band of rows (or a rectangle) be made without the rest:
that limits memory in the semantic maps and lets the point search skip nearly all of the image. Values agree
with `interpolate` up to float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitp_pipeline.geometry import Size


@dataclass(frozen=True)
class Lerp:
    """Sources of each index of a resized axis: `(1 − weight)·source[low] + weight·source[high]`.

    Attributes:
        low, high: (n_out,) integers in [0, n_in), both non-decreasing, high − low ∈ {0, 1}.
        weight: (n_out,) float64 in [0, 1).
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The half-open source range that the outputs [start, stop) read."""
        return int(self.low[start]), int(self.high[stop - 1]) + 1


@lru_cache(maxsize=256)
def lerp(n_in: int, n_out: int) -> Lerp:
    """The interpolation of an axis of length n_in resized to n_out; cached, so the arrays are read-only."""
    source = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0)
    low = np.minimum(source.astype(np.int64), n_in - 1)
    weight = source - low
    # An index that falls on a source index reads that one alone, so an unchanged axis reads exactly itself.
    made = Lerp(low, np.minimum(low + (weight > 0), n_in - 1), weight)
    for array in (made.low, made.high, made.weight):
        array.flags.writeable = False
    return made


def resize_band(band: Tensor, first: int, rows: Lerp, start: int, stop: int, width: int) -> Tensor:
    """Rows [start, stop) of a resized stack of planes.

    Args:
        band: (C, r, W) source rows first … first + r − 1; they must cover `rows.source(start, stop)`.
        first: index of the band's first row in the source.
        rows: interpolation of the row axis.
        start, stop: the wanted output rows.
        width: output width, from the source's whole width W.
    Returns:
        (C, stop − start, width), dtype and device of `band`.
    """
    low, high = (torch.tensor(t[start:stop] - first, device=band.device) for t in (rows.low, rows.high))
    weight = torch.tensor(rows.weight[start:stop], dtype=band.dtype, device=band.device)[:, None]
    upper = band[:, low]
    # a + w·(b − a): rows that read equal values stay exactly equal, whatever their weights.
    out = upper + weight * (band[:, high] - upper)
    if width != out.shape[-1]:
        out = bilinear(out, (stop - start, width))
    return out


def bilinear(planes: Tensor, size: Size) -> Tensor:
    """(C, H, W) → (C, *size), with align_corners=False. C may be 0, which torch refuses."""
    if not len(planes):
        return planes.new_zeros((0, *size))
    return F.interpolate(planes[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def resize_by_lerp(planes: Tensor, rows: Lerp, columns: Lerp) -> Tensor:
    """(C, H, W) → (C, n_out rows, n_out columns); ends that are not read may be missing."""
    for axis, own in ((1, rows), (2, columns)):
        low, high = (torch.tensor(t, device=planes.device) for t in (own.low, own.high))
        weight = torch.tensor(own.weight, dtype=planes.dtype, device=planes.device)
        first = planes.index_select(axis, low)
        planes = first + (weight[:, None] if axis == 1 else weight) * (planes.index_select(axis, high) - first)
    return planes


@dataclass(frozen=True)
class LerpRows:
    """Interpolation of n equally long stretches of an axis: low, high and weight of `Lerp`, each (n, length)."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray


def resize_patches(patches: np.ndarray, rows: LerpRows, columns: LerpRows) -> np.ndarray:
    """Rectangles of resized planes, in float64 and without fused operations, so the same on every machine.

    Args:
        patches: (n, r, c) source values.
        rows, columns: interpolation of each rectangle from its patch.
    Returns:
        (n, length of the rows, length of the columns) float64.
    """
    each, every = np.arange(len(patches))[:, None], np.arange(rows.low.shape[1])[:, None]
    upper = patches[each, rows.low]
    patches = upper + rows.weight[:, :, None] * (patches[each, rows.high] - upper)
    each = each[:, None]
    upper = patches[each, every, columns.low[:, None]]
    return np.asarray(upper + columns.weight[:, None] * (patches[each, every, columns.high[:, None]] - upper))
