"""Selection of the masks at a grid of points, and the place of a crop's masks in the frame.

The steps are those of transformers' mask-generation pipeline, which follows `SamAutomaticMaskGenerator` of
facebookresearch/segment-anything: thresholds on predicted IoU and on stability, masks at a crop's inner edge left out,
then non-maximum suppression of boxes by predicted IoU over all crops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid
from vitp_pipeline.geometry import Size, Window

NEAR = 20.0
"""Pixels of the frame within which a box is at an edge."""
OUTSIDE = -10.0
"""Mask logit of the frame outside a mask's crop."""
_BUDGET = 64 << 20
"""Bytes of enlarged masks at a time."""


@dataclass(frozen=True)
class CropMasks:
    """Masks of one crop, at the decoder's resolution.

    Attributes:
        logits: (n, h, w) float32, spanning the network's padded input.
        scores: (n,) predicted IoU.
        stability: (n,) in [0, 1].
        boxes: (n, 4) (x0, y0, x1, y1) in pixels of the frame, of {logit > 0}; the last row and column belong to it.
    """

    logits: Tensor
    scores: Tensor
    stability: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class CropGeometry:
    """Place of the masks of a crop.

    Attributes:
        frame: (height, width) of the frame.
        crop: the window of the frame that the network saw.
        resized: (height, width) of the crop as it entered the network.
        padded: (height, width) of the network's input, which the masks span.
        at_once: whether masks are enlarged to the crop in one step, as in networks that pad nothing.
    """

    frame: Size
    crop: Window
    resized: Size
    padded: Size
    at_once: bool = False


def select(logits: Tensor, scores: Tensor, geometry: CropGeometry, grid: PromptGrid) -> CropMasks:
    """Keep the masks whose predicted IoU and stability exceed the thresholds and that are not cut by the crop.

    Stability is the IoU of {logit > offset} and {logit > −offset}, and boxes are measured, at the crop's own pixels.

    Args:
        logits: (n, h, w) float32. scores: (n,) predicted IoU.
    """
    if grid.pred_iou_thresh > 0:
        kept = scores > grid.pred_iou_thresh
        logits, scores = logits[kept], scores[kept]
    size = max(1, _BUDGET // (4 * max(math.prod(geometry.padded), math.prod(geometry.crop[2:]))))
    parts = [_measure(part, geometry, grid.stability_score_offset) for part in logits.split(size)]
    stability = torch.cat([part[0] for part in parts]) if parts else logits.new_zeros(0)
    boxes = torch.cat([part[1] for part in parts]) if parts else logits.new_zeros(0, 4)
    kept = ~cut_by_crop(boxes, geometry)
    if grid.stability_score_thresh > 0:
        kept &= stability > grid.stability_score_thresh
    return CropMasks(logits[kept], scores[kept], stability[kept], boxes[kept])


def _measure(logits: Tensor, geometry: CropGeometry, offset: float) -> tuple[Tensor, Tensor]:
    """Stability (n,) and boxes (n, 4) in the frame, of masks (n, h, w); those without pixels have 0 and a zero box."""
    if not len(logits):
        return logits.new_zeros(0), logits.new_zeros(0, 4)
    planes = logits
    if not geometry.at_once:
        planes = _resized(logits, geometry.padded)[:, : geometry.resized[0], : geometry.resized[1]]
    planes = _resized(planes, geometry.crop[2:])
    inner, outer = ((planes > level).sum((1, 2)) for level in (offset, -offset))
    inside = planes > 0
    top, left, _, _ = geometry.crop
    x0, x1 = _extent(inside.any(1))
    y0, y1 = _extent(inside.any(2))
    boxes = torch.stack([x0, y0, x1, y1], 1) * inside.any(2).any(1)[:, None]
    return inner / outer.clamp(1), (boxes + boxes.new_tensor([left, top, left, top])).float()


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and last index that is True in each row of (n, length)."""
    flags = occupied.to(torch.uint8)
    return flags.argmax(1), occupied.shape[1] - 1 - flags.flip(1).argmax(1)


def _resized(planes: Tensor, size: Size) -> Tensor:
    if tuple(planes.shape[1:]) == tuple(size):
        return planes
    return F.interpolate(planes[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def cut_by_crop(boxes: Tensor, geometry: CropGeometry) -> Tensor:
    """Tell which boxes (n, 4) of the frame come near an edge of the crop that is none of the frame: (n,) bool."""
    top, left, height, width = geometry.crop
    edges = boxes.new_tensor([left, top, left + width, top + height])
    borders = boxes.new_tensor([0, 0, geometry.frame[1], geometry.frame[0]])
    near = ((boxes - edges).abs() <= NEAR) & ((boxes - borders).abs() > NEAR)
    return near.any(1)


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the indices of boxes (n, 4) that no kept box of a higher score overlaps by an IoU above `threshold`, by
    descending score.
    """
    from torchvision.ops import nms

    kept: Tensor = nms(boxes, scores, threshold)
    return kept


def on_canvas(logits: Tensor, geometry: CropGeometry, canvas: Size, span: Size) -> Tensor:
    """Resample masks of a crop to a grid over the frame.

    Args:
        logits: (n, h, w) float32.
        canvas: (H, W) of the grid. span: (height, width) in pixels of the frame that it spans from the top-left corner.
    Returns:
        (n, H, W) float32, bilinear; `OUTSIDE` where a cell's center lies outside the crop. The same tensor where the
        grids are the same.
    """
    top, left, height, width = geometry.crop
    whole = (top, left, height, width) == (0, 0, *geometry.frame)
    aligned = all(
        size * seen == padded * extent
        for size, seen, padded, extent in zip(span, geometry.resized, geometry.padded, (height, width), strict=True)
    )
    if whole and aligned and tuple(logits.shape[1:]) == tuple(canvas):
        return logits
    places, inside = [], []
    for axis, (start, extent) in enumerate(((top, height), (left, width))):
        pixels = (torch.arange(canvas[axis], device=logits.device, dtype=torch.float64) + 0.5) * (
            span[axis] / canvas[axis]
        ) - start
        inside.append((pixels >= 0) & (pixels < extent))
        places.append(2 * pixels * (geometry.resized[axis] / extent / geometry.padded[axis]) - 1)
    where = torch.stack(torch.meshgrid(places[1], places[0], indexing="xy"), -1).float()
    found = F.grid_sample(logits[None], where[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    if whole:  # right and below lies the padding of both
        return found
    return found.masked_fill_(~(inside[0][:, None] & inside[1][None, :]), OUTSIDE)
