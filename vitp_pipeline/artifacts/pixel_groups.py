"""The pixels of an image in groups that no mask tells apart: maps of large images from binary masks.

Where masks have the resolution of the image and few distinct values, all pixels that lie in the same masks have the
same scores. A hundred masks divide twelve megapixels into some thousands of groups, so scores are computed once for a
group, as for an image of one row with a pixel for each group; (masks, H, W) floats never exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vitp_pipeline.geometry import Size, View


class MaskPart(NamedTuple):
    """A mask (H, W) of few distinct values, by the rectangle where it differs from the first of them.

    Attributes:
        top, left: first pixel of the rectangle.
        codes: (r, c) uint8, places in `levels`.
        levels: values; all pixels beyond the rectangle have the first.
    """

    top: int
    left: int
    codes: np.ndarray
    levels: np.ndarray

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.codes.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def plane(self, size: Size) -> np.ndarray:
        """The whole mask, (H, W) of the dtype of the levels."""
        plane = np.full(size, self.levels[0], self.levels.dtype)
        plane[self.box] = self.levels[self.codes]
        return plane


MOST_LEVELS = 8
"""Distinct values of a mask that is divided into groups; binary masks have at most three."""


class ManyLevels(Exception):
    """A mask has more than `MOST_LEVELS` distinct values."""


def part_of(plane: np.ndarray) -> MaskPart:
    """Find the distinct values of a mask (H, W) and where they are. Raises ManyLevels."""
    far = plane.min()
    rest = plane != far
    rows, columns = (np.flatnonzero(rest.any(axis)) for axis in (1, 0))
    if not len(rows):
        return MaskPart(0, 0, np.zeros((0, 0), np.uint8), np.array([far]))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    plane, rest, levels = plane[box], rest[box], [far]
    codes = np.zeros(plane.shape, np.uint8)
    while rest.any():
        if len(levels) == MOST_LEVELS:
            raise ManyLevels
        level = plane.flat[rest.argmax()]
        same = plane == level
        codes[same] = len(levels)
        rest &= ~same
        levels.append(level)
    return MaskPart(int(rows[0]), int(columns[0]), codes, np.array(levels))


@dataclass(frozen=True)
class PixelGroups:
    """N groups of the pixels of an image.

    Attributes:
        index: (H, W) int32, the group of every pixel.
        sizes: (N,) int64, pixels of each group, at least 1.
    """

    index: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)

    @property
    def view(self) -> View:
        """Geometry of an image of one row that has a pixel for each group, and of its masks."""
        row = (1, len(self.sizes))
        return View(row, row, row, row)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(…, 1, N) values of the groups → (…, H, W) values of their pixels."""
        return np.asarray(values[..., 0, :].take(self.index, -1))


def group_pixels(masks: Iterable[MaskPart], size: Size) -> tuple[PixelGroups, np.ndarray]:
    """Divide an image into groups of pixels that have the same value in every mask.

    Args:
        masks: M masks, read once, one at a time.
        size: (H, W).
    Returns:
        the groups, and (M, 1, N) float32: the value of each mask in each group.
    """
    index, sizes = np.zeros(size, np.int32), np.array([size[0] * size[1]], np.int64)
    codes, levels = np.zeros((0, 1), np.uint8), []
    for mask in masks:
        part = index[mask.box]
        codes = np.concatenate([codes, np.zeros((1, len(sizes)), np.uint8)])
        levels.append(mask.levels.astype(np.float32))
        for code in range(1, len(mask.levels)):
            inside = mask.codes == code
            groups = part[inside]
            found = np.bincount(groups, minlength=len(sizes))
            divided = np.flatnonzero((found > 0) & (found < sizes))
            place = np.arange(len(sizes), dtype=np.int32)
            place[divided] = len(sizes) + np.arange(len(divided))
            part[inside] = place[groups]
            sizes[divided] -= found[divided]
            sizes = np.concatenate([sizes, found[divided]])
            codes = np.concatenate([codes, codes[:, divided]], 1)
            codes[-1, place[np.flatnonzero(found)]] = code
    values = [own[code] for own, code in zip(levels, codes, strict=True)]
    return PixelGroups(index, sizes), np.array(values, np.float32).reshape(len(codes), 1, len(sizes))
