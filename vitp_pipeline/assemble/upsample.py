"""From mask logits at the generator's resolution to the original image, in each protocol's order.

| protocol | chain (field notes §5.6) |
|---|---|
| `d2`, `mmdet` | logits → padded frame → crop padding → original size → sigmoid |
| `mmseg1` | logits → padded frame → sigmoid → crop padding → original size (of class scores, or of masks) |

The logits themselves reach the image by the same chain everywhere; where sigmoid stands makes the difference,
and only when resized ≠ original.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from vitp_pipeline.assemble.resize import resize_band, taps
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import Size, View

PROTOCOLS = ("mmseg1", "mmdet", "d2")


def check_protocol(protocol: str) -> None:
    """Raises UsageError when `protocol` is none of `PROTOCOLS`."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown mask protocol {protocol!r}", f"Choose one of {', '.join(PROTOCOLS)}")


def check_frame(mask_logits: Tensor, view: View) -> None:
    """Raises IncompatibleError when `mask_logits` is not (Q, h, w) with (h, w) = view.mask."""
    if mask_logits.ndim != 3 or tuple(mask_logits.shape[1:]) != tuple(view.mask):
        raise IncompatibleError(
            f"mask logits {tuple(mask_logits.shape)} do not fit a view whose masks are {tuple(view.mask)}"
        )


def mask_logits_at_image(mask_logits: Tensor, view: View) -> Tensor:
    """All mask logits on the original image's pixel grid.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        view: how the generator saw the image.
    Returns:
        (Q, H0, W0) float32. Holds Q whole planes: see `iter_mask_logits` and `image_logit_band` for less.
    Raises:
        IncompatibleError: shape and view disagree.
    """
    return resize_planes(mask_logits_at_resized(mask_logits, view), view.original)


def mask_logits_at_resized(mask_logits: Tensor, view: View) -> Tensor:
    """(Q, Hr, Wr) float32: upsampled to the padded frame, padding cropped. Raises like
    `mask_logits_at_image`.
    """
    check_frame(mask_logits, view)
    return resize_planes(mask_logits.float(), view.padded)[:, : view.resized[0], : view.resized[1]]


def iter_mask_logits(mask_logits: Tensor, view: View) -> Iterator[Tensor]:
    """The planes of `mask_logits_at_image` one query at a time: Q tensors (H0, W0) float32."""
    check_frame(mask_logits, view)
    for query in range(len(mask_logits)):
        yield mask_logits_at_image(mask_logits[query : query + 1], view)[0]


def iter_mask_probabilities(mask_logits: Tensor, view: View, protocol: str) -> Iterator[Tensor]:
    """Mask probabilities on the original image one query at a time: Q tensors (H0, W0) float32 in [0, 1].

    `mmseg1` takes the sigmoid before the resize to the original, the others after it.

    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shape and view disagree.
    """
    check_protocol(protocol)
    check_frame(mask_logits, view)
    for query in range(len(mask_logits)):
        plane = mask_logits_at_resized(mask_logits[query : query + 1], view)
        if protocol == "mmseg1":
            yield resize_planes(plane.sigmoid(), view.original)[0]
        else:
            yield resize_planes(plane, view.original)[0].sigmoid()


def resized_logit_band(mask_logits: Tensor, view: View, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of `mask_logits_at_resized`: (Q, stop − start, Wr) float32, equal up to rounding."""
    rows = taps(view.mask[0], view.padded[0])
    first, last = rows.source(start, stop)
    band = resize_band(mask_logits[:, first:last].float(), first, rows, start, stop, view.padded[1])
    return band[..., : view.resized[1]]


def image_logit_band(mask_logits: Tensor, view: View, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of `mask_logits_at_image`: (Q, stop − start, W0) float32, equal up to rounding."""
    if view.resized == view.original:
        return resized_logit_band(mask_logits, view, start, stop)
    rows = taps(view.resized[0], view.original[0])
    first, last = rows.source(start, stop)
    band = resized_logit_band(mask_logits, view, first, last)
    return resize_band(band, first, rows, start, stop, view.original[1])


def resize_planes(planes: Tensor, size: Size) -> Tensor:
    """Bilinear (align_corners=False) (C, H, W) → (C, *size); the same tensor where the size is already
    right.
    """
    if tuple(planes.shape[1:]) == tuple(size):
        return planes
    return F.interpolate(planes[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
