"""From mask logits at the generator's resolution to the original image, in each protocol's order.

| protocol | chain |
|---|---|
| `d2`, `mmdet` | logits → padded frame → crop padding → original size → sigmoid |
| `mmseg1` | logits → padded frame → sigmoid → crop padding → original size (of class scores, or of masks) |
| `mmseg0` | logits → sigmoid (→ class scores) → padded frame → crop padding → original size |

The logits themselves reach the image by the same chain everywhere; they differ in the place of the sigmoid. Between
cropping and resizing, a window takes its place in the resized image; flipped planes are turned back at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vitp_pipeline.config.choices import PROTOCOLS
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import Size, View
from vitp_pipeline.postprocess.resize import Lerp, bilinear, lerp, resize_band, resize_by_lerp


def check_protocol(protocol: str) -> None:
    """Raise UsageError when `protocol` is none of `PROTOCOLS`."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown mask protocol {protocol!r}", f"Choose one of {', '.join(PROTOCOLS)}")


def check_frame(mask_logits: Tensor, view: View) -> None:
    """Raise IncompatibleError when `mask_logits` is not (Q, h, w) with (h, w) = view.mask."""
    if mask_logits.ndim != 3 or tuple(mask_logits.shape[1:]) != tuple(view.mask):
        raise IncompatibleError(
            f"mask logits {tuple(mask_logits.shape)} do not fit a view whose masks are {tuple(view.mask)}"
        )


def mask_logits_at_image(mask_logits: Tensor, view: View) -> Tensor:
    """All mask logits on the pixel grid of the original, upright image.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        view: how the generator saw the image.
    Returns:
        (Q, H0, W0) float32, −∞ where the view's window does not reach. Holds Q whole planes: see `iter_mask_logits`
        and `image_logit_band` for less.
    Raises:
        IncompatibleError: shape and view disagree.
    """
    return seen_to_image(mask_logits_at_resized(mask_logits, view), view, -math.inf)


def mask_logits_at_resized(mask_logits: Tensor, view: View) -> Tensor:
    """(Q, height, width) float32 of the visible part of the resized image: upsampled to the padded frame, then cropped.

    Raises like `mask_logits_at_image`.
    """
    check_frame(mask_logits, view)
    return _without_padding(resize_planes(mask_logits.float(), view.padded), view)


def _without_padding(planes: Tensor, view: View) -> Tensor:
    height, width = view.seen[2:]
    return planes[:, :height, :width]


def seen_to_image(planes: Tensor, view: View, outside: float) -> Tensor:
    """Planes of the visible part of the resized image, on the pixel grid of the original.

    A pixel belongs to a window when its center does, and reads nothing outside the window.

    Args:
        planes: (C, height, width) of `view.seen`.
        outside: the value of pixels that are not seen.
    Returns:
        (C, H0, W0).
    """
    if view.window is None:
        planes = resize_planes(planes, view.original)
    else:
        part = resize_by_lerp(planes, seen_lerp(view, 0), seen_lerp(view, 1))
        (top, bottom), (left, right) = view.pixels(0), view.pixels(1)
        planes = planes.new_full((len(planes), *view.original), outside)
        planes[:, top:bottom, left:right] = part
    return planes.flip(-1) if view.flip else planes


def seen_lerp(view: View, axis: int) -> Lerp:
    """Return the sources of the original's pixels `view.pixels(axis)` along an axis of the visible resized image."""
    whole = lerp(view.resized[axis], view.original[axis])
    if view.window is None:
        return whole
    start, length = view.seen[axis], view.seen[axis + 2]
    own = slice(*view.pixels(axis))
    low, high = (np.clip(t[own] - start, 0, length - 1) for t in (whole.low, whole.high))
    return Lerp(low, high, whole.weight[own])


def source_reach(view: View) -> int:
    """Return the largest distance, in rows or columns, of two cells of a mask that one pixel of the image reads.

    1 for one bilinear upsampling, 2 for two in a row. Protocols that take the sigmoid early read class scores from
    nearer cells, but all read the outline {logit > 0} of a mask through the whole chain (upper bounds, instances).
    """
    reach = 0
    for axis in (0, 1):
        first, second = lerp(view.mask[axis], view.padded[axis]), seen_lerp(view, axis)
        reach = max(reach, int((first.high[second.high] - first.low[second.low]).max()))
    return reach


def iter_mask_logits(mask_logits: Tensor, view: View) -> Iterator[Tensor]:
    """The planes of `mask_logits_at_image` one query at a time: Q tensors (H0, W0) float32."""
    check_frame(mask_logits, view)
    for query in range(len(mask_logits)):
        yield mask_logits_at_image(mask_logits[query : query + 1], view)[0]


@dataclass(frozen=True)
class Outline:
    """Positive pixels of a mask: `inside`, (r, c) bool, has its first pixel at (top, left) of the original image, and
    beyond it nothing is.
    """

    top: int
    left: int
    inside: np.ndarray


def iter_outlines(mask_logits: Tensor, view: View) -> Iterator[Outline | None]:
    """{logit > 0} of each of the Q planes of `iter_mask_logits`, to the pixel; None of `iter_positive_parts`."""
    for part in iter_positive_parts(mask_logits, view):
        yield None if part is None else Outline(part.top, part.left, (part.values > 0).cpu().numpy())


@dataclass(frozen=True)
class PositivePart:
    """A rectangle of a mask at image resolution, beyond which no logit is positive: (r, c) float32 `values`, the first
    of them of the pixel (top, left) of the original image.
    """

    top: int
    left: int
    values: Tensor


def iter_positive_parts(mask_logits: Tensor, view: View, early_sigmoid: bool = False) -> Iterator[PositivePart | None]:
    """The part of each of the Q planes of `iter_mask_logits` that surrounds its positive pixels.

    None where no cell of a mask is positive: then no pixel is. Where such a part of a plane is made as the whole would
    be, only what surrounds the positive cells is upsampled. Positive values are those of the whole plane, the others
    may be other values that are not positive.

    Args:
        early_sigmoid: take the sigmoid before the resize to the original, as `mmseg1` does; positive means above 0.5.
    """
    check_frame(mask_logits, view)
    masks = mask_logits.float()
    spans = [_spans((masks.amax(axis) > 0).cpu().numpy()) if len(masks) else [] for axis in (2, 1)]
    in_parts = exact_parts(view)
    for query, (rows, columns) in enumerate(zip(*spans, strict=True)):
        if rows is None:
            yield None
        elif in_parts:
            part = masks[query : query + 1, slice(*rows), slice(*columns)]
            yield _upsampled_part(part, rows[0], columns[0], view, early_sigmoid)
        else:
            plane = mask_logits_at_resized(masks[query : query + 1], view)
            yield PositivePart(0, 0, _at_image(plane, view, early_sigmoid))


def _spans(positive: np.ndarray) -> list[tuple[int, int] | None]:
    """From the first to beyond the last that is positive in each row of (Q, n), and two more at either side: with one
    alone, the second of two resizes would read what depends on cells beyond.
    """
    first, last = positive.argmax(1), positive.shape[1] - positive[:, ::-1].argmax(1)
    return [
        (max(0, int(start) - 2), min(positive.shape[1], int(stop) + 2)) if found else None
        for start, stop, found in zip(first, last, np.asarray(positive.any(1)), strict=True)
    ]


def exact_parts(view: View) -> bool:
    """True if the first resize is by a power of two: then its coordinates are exact wherever a part begins."""
    factors = [padded // mask for padded, mask in zip(view.padded, view.mask, strict=True)]
    whole = all(f * mask == padded for f, mask, padded in zip(factors, view.mask, view.padded, strict=True))
    return whole and all(factor & (factor - 1) == 0 for factor in factors)


def _upsampled_part(part: Tensor, row: int, col: int, view: View, early_sigmoid: bool) -> PositivePart:
    """Upsample a part (1, r, c) of a mask that begins at cell (row, col) and holds all positive cells."""
    height, width = view.seen[2:]
    down, right = (padded // mask for padded, mask in zip(view.padded, view.mask, strict=True))
    part = resize_planes(part, (part.shape[1] * down, part.shape[2] * right))
    top, left = row * down, col * right
    part = part[:, : max(0, height - top), : max(0, width - left)]
    if view.whole and view.resized == view.original:  # nothing else is resized
        return PositivePart(top, left, (part.sigmoid() if early_sigmoid else part)[0])
    plane = part.new_full((1, height, width), -1.0)
    plane[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return PositivePart(0, 0, _at_image(plane, view, early_sigmoid))


def _at_image(plane: Tensor, view: View, early_sigmoid: bool) -> Tensor:
    """(H0, W0) of a plane (1, height, width) of the visible part of the resized image."""
    if early_sigmoid:
        return seen_to_image(plane.sigmoid(), view, 0.0)[0]
    return seen_to_image(plane, view, -math.inf)[0]


def iter_mask_probabilities(mask_logits: Tensor, view: View, protocol: str) -> Iterator[Tensor]:
    """Mask probabilities on the original image one query at a time: Q tensors (H0, W0) float32 in [0, 1].

    `mmseg0` takes the sigmoid at the masks' own resolution, `mmseg1` before the resize to the original, the others
    after it. Outside the view's window they are 0.

    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shape and view disagree.
    """
    check_protocol(protocol)
    check_frame(mask_logits, view)
    for query in range(len(mask_logits)):
        mask = mask_logits[query : query + 1].float()
        if protocol == "mmseg0":
            plane = _without_padding(resize_planes(mask.sigmoid(), view.padded), view)
            yield seen_to_image(plane, view, 0.0)[0]
        elif protocol == "mmseg1":
            yield seen_to_image(mask_logits_at_resized(mask, view).sigmoid(), view, 0.0)[0]
        else:
            yield mask_logits_at_image(mask, view)[0].sigmoid()


def resized_band(planes: Tensor, view: View, start: int, stop: int) -> Tensor:
    """Rows [start, stop), of the visible part of the resized image, of planes at mask resolution.

    Args:
        planes: (C, h, w) floats in the padded frame.
    Returns:
        (C, stop − start, width) float32.
    """
    rows = lerp(view.mask[0], view.padded[0])
    first, last = rows.source(start, stop)
    band = resize_band(planes[:, first:last].float(), first, rows, start, stop, view.padded[1])
    return band[..., : view.seen[3]]


def image_logit_band(mask_logits: Tensor, view: View, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of `mask_logits_at_image` of a view without window: (Q, stop − start, W0) float32, equal up
    to rounding.
    """
    rows = lerp(view.resized[0], view.original[0])
    first, last = rows.source(start, stop)
    band = resized_band(mask_logits, view, first, last)
    if view.resized != view.original:
        band = resize_band(band, first, rows, start, stop, view.original[1])
    return band.flip(-1) if view.flip else band


def resize_planes(planes: Tensor, size: Size) -> Tensor:
    """Bilinear (align_corners=False) (C, H, W) → (C, *size); the same tensor where the size is already
    right.
    """
    if tuple(planes.shape[1:]) == tuple(size):
        return planes
    return bilinear(planes, size)
