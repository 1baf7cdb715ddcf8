"""Panoptic maps from masks and class probabilities: the rules of detectron2-style models and of
mmdetection.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.config.choices import PANOPTIC_RULES, Overlap
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.blocks import (
    Runs,
    block_areas,
    block_cells,
    block_pixels,
    block_values,
    first_largest,
    image_runs,
    own_pixels,
    pooled,
    sole,
)
from vitp_pipeline.postprocess.overlaps.maps import opaque_owners
from vitp_pipeline.postprocess.upsample import check_frame, check_protocol, iter_mask_probabilities

_VALUES = 1 << 19  # floats of a stack that is worked on at once
_PAIRS = 1 << 13  # blocks of masks whose pixels are made at once
_ROUNDING = 1e-6  # of a probability by float32, and of a logit in units of its size
_SMALLEST = 1e-30  # a weight below this has no digits left to be compared by


@dataclass(frozen=True)
class PanopticRule:
    """Rule by which masks compete for pixels (OneFormer's, Mask2Former's or mmdetection's inference).

    Attributes:
        protocol: "d2" (Mask2Former, OneFormer): a segment keeps the pixels it owns *and* claims; "mmdet"
            (MaskFormerFusionHead): it keeps all that it owns, unless `filter_low_score`.
        object_threshold: a query takes part when its best class is not no-object and scores above this. 0.8 for
            COCO and Cityscapes, 0.5 for ADE20K in OneFormer.
        overlap_threshold: a segment is kept if owned pixels / claimed pixels is at least this.
        pixel_threshold: a mask claims the pixels of at least this probability.
        filter_low_score: of "mmdet" only.
    """

    protocol: str = "d2"
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    pixel_threshold: float = 0.5
    filter_low_score: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in PANOPTIC_RULES:
            raise UsageError(f"unknown panoptic rule {self.protocol!r}", f"Choose one of {', '.join(PANOPTIC_RULES)}")
        for name in ("object_threshold", "overlap_threshold", "pixel_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} = {getattr(self, name)} is not in [0, 1]")

    @property
    def keeps_only_claimed(self) -> bool:
        return self.protocol == "d2" or self.filter_low_score


@dataclass(frozen=True)
class Segment:
    """One predicted segment: `id` in the id map (from 1), `category` a class index 0..K−1, `score` in [0,
    1], and the places of its masks among those given, ascending.
    """

    id: int
    category: int
    score: float
    masks: tuple[int, ...] = field(default=(), compare=False)


def panoptic_map(
    mask_logits: Tensor,
    probs: Tensor,
    no_object: Tensor,
    view: View,
    protocol: str,
    rule: PanopticRule,
    things: np.ndarray | Tensor,
    quality: Tensor | None = None,
    overlap: Overlap = "sum",
    pixels: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Segment]]:
    """Assign every pixel to a segment or to none.

    Queries take part by `rule.object_threshold` on max over [p, no object] (ties to the lowest class). A pixel
    belongs to the query with the largest score · sigmoid(mask) (ties to the lowest query), also where that is
    small. Segments are numbered in query order; stuff segments of one class become one, with the best score
    of its masks.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame. Only the rows of taking-part queries are read.
        probs: (Q, K) class probabilities.
        no_object: (Q,) probability of no object.
        view: how the generator saw the image.
        protocol: where sigmoid stands: see `postprocess.upsample`.
        rule: thresholds.
        things: (K,) bool, True for countable classes.
        quality: (Q,) factors in [0, 1] of the scores by which masks compete and segments are reported (see
            `mask_quality`); None = 1. Queries take part by class score alone: the threshold was chosen for it, and
            a dropped mask that could not take part cannot with a factor either (docs/storage.md).
        overlap: "sum": as above. Otherwise a pixel that masks claim belongs to the topmost of them
            (`overlaps.stack`); which masks take part, and which of them are kept, is decided as above.
        pixels: (H0·W0,) int64, of how many pixels each one's area is (`artifacts.pixel_groups`); None = of itself.
    Returns:
        ids (H0, W0) int32, 0 = unassigned; and the segments in order of id, each with at least one pixel.
    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shapes disagree.
    """
    check_protocol(protocol)
    check_frame(mask_logits, view)
    things = np.asarray(things, bool)
    if probs.shape != (len(mask_logits), len(things)) or no_object.shape != (len(mask_logits),):
        raise IncompatibleError(
            f"probabilities {tuple(probs.shape)} and no object {tuple(no_object.shape)} for {len(mask_logits)} masks, "
            f"{len(things)} classes"
        )
    if quality is not None and quality.shape != no_object.shape:
        raise IncompatibleError(f"quality {tuple(quality.shape)} for {len(mask_logits)} masks")
    scores, labels = torch.cat([probs, no_object[:, None].to(probs)], 1).float().max(1)
    kept = ((labels < len(things)) & (scores > rule.object_threshold)).nonzero()[:, 0]
    ids = np.zeros(view.original, np.int32)
    if not len(kept):
        return ids, []
    if quality is not None:
        scores = scores * quality.to(scores)
    masks, scores_kept = mask_logits[kept.to(mask_logits.device)], scores[kept]
    if pixels is None:
        owner, claimed, areas = _compete(masks, scores_kept, view, protocol, rule)
    else:
        owner, claimed, areas = _compete_by_planes(masks, scores_kept, view, protocol, rule, pixels)
    if overlap != "sum":
        threshold = rule.pixel_threshold
        owner, claimed, areas = opaque_owners(masks, scores_kept, view, protocol, threshold, overlap, owner, pixels)

    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    weights = (None, None) if pixels is None else (pixels, pixels[claimed.ravel()])
    owned_areas, both_areas = (
        np.bincount(own.ravel(), weight, len(kept))
        for own, weight in zip((owner, owner[claimed]), weights, strict=True)
    )
    id_of = np.zeros(len(kept), np.int32)
    for index, query in enumerate(kept.tolist()):
        if not owned_areas[index] or not areas[index] or owned_areas[index] / areas[index] < rule.overlap_threshold:
            continue
        if rule.keeps_only_claimed and not both_areas[index]:
            continue
        category, score = int(labels[query]), float(scores[query])
        place = len(segments) if things[category] else stuff.setdefault(category, len(segments))
        if place == len(segments):
            segments.append(Segment(place + 1, category, score, (query,)))
        else:
            known = segments[place]
            segments[place] = replace(known, score=max(score, known.score), masks=(*known.masks, query))
        id_of[index] = place + 1
    ids = id_of[owner]
    if rule.keeps_only_claimed:
        ids[~claimed] = 0
    return ids, segments


def _compete(
    mask_logits: Tensor, scores: Tensor, view: View, protocol: str, rule: PanopticRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Owner of every pixel (H0, W0) int32, whether it claims it (H0, W0) bool, claimed areas of the masks (Q,)."""
    resizes_late = protocol == "mmseg1" and view.resized != view.original
    rows, columns = (image_runs(view, axis) for axis in (0, 1))
    if mask_logits.device.type != "cpu" or resizes_late or rows is None or columns is None:
        return _compete_by_planes(mask_logits, scores, view, protocol, rule)
    return _compete_by_blocks(mask_logits, scores, rows, columns, protocol == "mmseg0", rule.pixel_threshold)


def _compete_by_blocks(
    mask_logits: Tensor, scores: Tensor, rows: Runs, columns: Runs, early: bool, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign owners by blocks. The weight of a mask in a block lies between those of its least and largest cell (see
    `label_bounds`). Pixels are computed only where no mask's least exceeds all others' largest, or where the best mask
    claims a part of the block.

    Args:
        early: the sigmoid comes before the resizes.
    """
    shape = len(rows.run_of), len(columns.run_of)
    owner, claimed = np.empty(shape, np.int32), np.empty(shape, bool)
    areas, scores = np.zeros(len(mask_logits), np.int64), scores.to(mask_logits.device)[:, None]
    sizes = torch.from_numpy(block_areas(rows, columns)).double()
    band = max(1, _VALUES // (len(mask_logits) * len(columns)))
    for start in range(0, len(rows), band):
        stop = min(start + band, len(rows))
        cells = block_cells(mask_logits, rows, columns, start, stop).float().contiguous()
        cells = cells.sigmoid() if early else cells
        least, most = (pooled(cells, rows, columns, pick).flatten(1) for pick in (torch.minimum, torch.maximum))
        if not early:
            least, most = least.sigmoid(), most.sigmoid()
        claims, unclear = (
            least >= threshold + _ROUNDING,
            (least < threshold + _ROUNDING) & (most > threshold - _ROUNDING),
        )
        areas += (claims.double() @ sizes[start:stop].flatten()).long().numpy()
        areas += _claimed_pixels(cells, rows, columns, start, unclear.numpy(), early, threshold)

        slack = 1 + _ROUNDING * (1 + float(cells.abs().max()))
        lowest = (least * scores).amax(0)
        possible = (most * scores * slack >= lowest).numpy()
        winner = sole(possible).astype(np.int64)
        places = np.arange(len(winner))
        decided = (possible.sum(0) == 1) & (lowest > _SMALLEST).numpy()
        winner[~decided] = 0
        decided &= ~unclear.numpy()[winner, places]
        first, last = rows.outputs[start, 0], rows.outputs[stop - 1, -1] + 1
        down = rows.run_of[first:last] - start
        for out, known in ((owner, winner), (claimed, claims.numpy()[winner, places])):
            out[first:last] = known.reshape(stop - start, -1).take(columns.run_of, 1).take(down, 0)
        column, row = np.nonzero(~decided.reshape(stop - start, -1).T)
        piece = max(1, _VALUES // (len(mask_logits) * rows.outputs.shape[1] * columns.outputs.shape[1]))
        for begin in range(0, len(row), piece):
            i, j = row[begin : begin + piece], column[begin : begin + piece]
            left = np.flatnonzero(possible.take(i * len(columns) + j, 1).any(1))
            values = block_values(cells[left], rows, columns, i + start, j, start).flatten(1)
            values = values if early else values.sigmoid_()
            best = first_largest(values * scores[left])
            pixels = block_pixels(rows, columns, i + start, j, shape[1]).ravel()
            owner.reshape(-1)[pixels] = left[best]
            claimed.reshape(-1)[pixels] = values.numpy()[best, np.arange(len(best))] >= threshold
    return owner, claimed, areas


def _claimed_pixels(
    cells: Tensor, rows: Runs, columns: Runs, start: int, unclear: np.ndarray, early: bool, threshold: float
) -> np.ndarray:
    """Count (Q,) int64 pixels that masks claim in blocks that bounds do not decide. unclear: (Q, blocks) bool."""
    areas = np.zeros(len(cells), np.int64)
    query, block = np.nonzero(unclear)
    for first in range(0, len(query), _PAIRS):
        own = query[first : first + _PAIRS]
        row, column = np.divmod(block[first : first + _PAIRS], len(columns))
        values = block_values(cells, rows, columns, row + start, column, start, own)[0]
        claims = ((values if early else values.sigmoid_()) >= threshold).numpy()
        claims &= own_pixels(rows, columns, row + start, column)
        areas += np.bincount(own, weights=claims.sum((0, 1)), minlength=len(cells)).astype(np.int64)
    return areas


def _compete_by_planes(
    mask_logits: Tensor,
    scores: Tensor,
    view: View,
    protocol: str,
    rule: PanopticRule,
    pixels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One plane at a time: memory does not grow with the number of masks."""
    areas = []
    weights = None if pixels is None else torch.from_numpy(pixels).to(mask_logits.device)
    for index, mask in enumerate(iter_mask_probabilities(mask_logits, view, protocol)):
        claims = mask >= rule.pixel_threshold
        areas.append(int(claims.sum() if weights is None else weights[claims.flatten()].sum()))
        weighted = mask * scores[index].to(mask)
        if index == 0:
            best, claimed, owner = weighted, claims, torch.zeros_like(mask, dtype=torch.int32)
            continue
        wins = weighted > best
        best = torch.where(wins, weighted, best)
        claimed = torch.where(wins, claims, claimed)
        owner.masked_fill_(wins, index)
    return owner.cpu().numpy(), claimed.cpu().numpy(), np.array(areas)
