"""Masks as opaque sheets: their order, and the topmost at every pixel.

| rule | on top is | of equals |
|---|---|---|
| `smallest-on-top` | the mask with the fewest pixels on the original image | the higher score, then the lower query |
| `highest-score` | the mask with the highest score | the fewer pixels, then the lower query |

The order is a strict one, so that a map does not depend on the order of painting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from vitp_pipeline.config.choices import Overlap
from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import Size, View
from vitp_pipeline.postprocess.upsample import Outline, iter_mask_probabilities, iter_outlines


@dataclass(frozen=True)
class Sheet:
    """The pixels of a mask, a bit each: those of a box of `shape` whose first pixel is (top, left) of the image.

    Attributes:
        area: how many they are.
        bits: the box in rows, as `numpy.packbits` has it.
    """

    top: int
    left: int
    shape: tuple[int, int]
    area: int
    bits: np.ndarray

    @classmethod
    def of(cls, outline: Outline | None, pixels: np.ndarray | None = None) -> Sheet:
        """Pack an outline; None has no pixel. With (H, W) `pixels` each counts as so many."""
        if outline is None or not outline.inside.size:
            return cls(0, 0, (0, 0), 0, np.zeros(0, np.uint8))
        inside = outline.inside
        sheet = cls(outline.top, outline.left, inside.shape, int(inside.sum()), np.packbits(inside))
        return sheet if pixels is None else replace(sheet, area=int(pixels[sheet.box][inside].sum()))

    @property
    def box(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.shape[0]), slice(self.left, self.left + self.shape[1])

    @property
    def inside(self) -> np.ndarray:
        """`shape` bool."""
        return np.unpackbits(self.bits, count=self.shape[0] * self.shape[1]).astype(bool).reshape(self.shape)


def outline_sheets(mask_logits: Tensor, view: View, pixels: np.ndarray | None = None) -> list[Sheet]:
    """Pack {logit > 0} of every mask at image resolution, as the upper bounds have it.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        view: how the generator saw the image.
        pixels: (H0·W0,) int64, of how many pixels each one's area is (`artifacts.pixel_groups`); None = of itself.
    Raises:
        IncompatibleError: shape and view disagree.
    """
    weights = None if pixels is None else pixels.reshape(view.original)
    return [Sheet.of(outline, weights) for outline in iter_outlines(mask_logits, view)]


def claimed_sheets(
    mask_logits: Tensor, view: View, protocol: str, threshold: float, pixels: np.ndarray | None = None
) -> list[Sheet]:
    """Pack {mask probability ≥ threshold} of every mask at image resolution, as panoptic maps have it.

    Args:
        mask_logits, view, pixels: as `outline_sheets`.
        protocol: where sigmoid stands: see `postprocess.upsample`.
    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shape and view disagree.
    """
    planes = iter_mask_probabilities(mask_logits, view, protocol)
    weights = None if pixels is None else pixels.reshape(view.original)
    return [Sheet.of(_bounded((plane >= threshold).cpu().numpy()), weights) for plane in planes]


def _bounded(inside: np.ndarray) -> Outline | None:
    """The part of a plane (H, W) bool that has all its pixels; None where there is none."""
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    return Outline(top, left, inside[top : rows[-1] + 1, left : columns[-1] + 1])


def bottom_to_top(rule: Overlap, areas: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Order masks, the lowest first.

    Args:
        areas: (Q,) pixels. scores: (Q,) numbers.
    Returns:
        (Q,) int64, a permutation.
    Raises:
        UsageError: the rule has no order.
    """
    place = np.arange(len(areas))
    if rule == "smallest-on-top":
        return np.lexsort((-place, scores, -areas))
    if rule == "highest-score":
        return np.lexsort((-place, -areas, scores))
    raise UsageError(f"overlap = {rule!r} has no order of masks", "Choose smallest-on-top or highest-score")


def topmost(sheets: Sequence[Sheet], order: Iterable[int], size: Size) -> np.ndarray:
    """Lay sheets on each other.

    Args:
        order: places among the sheets, the lowest first; those that it leaves out are not laid.
    Returns:
        (H, W) int32: the place of the topmost sheet at every pixel, −1 where there is none.
    """
    top = np.full(size, -1, np.int32)
    for place in order:
        top[sheets[place].box][sheets[place].inside] = place
    return top
