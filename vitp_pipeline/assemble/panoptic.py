"""Panoptic maps from masks and class probabilities: the rules of detectron2-style models and of
mmdetection.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.assemble.upsample import check_frame, check_protocol, iter_mask_probabilities
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import View


@dataclass(frozen=True)
class PanopticRule:
    """How masks compete for pixels (facts §3.4, field notes §5.6).

    Attributes:
        protocol: "d2" (Mask2Former, OneFormer): a segment keeps the pixels it owns *and* claims; "mmdet"
            (MaskFormerFusionHead): it keeps all that it owns, unless `filter_low_score`.
        object_threshold: a query takes part when its best class is not void and scores above this. 0.8 for
            COCO and Cityscapes, 0.5 for ADE20K in OneFormer.
        overlap_threshold: a segment lives when owned pixels / claimed pixels is at least this.
        pixel_threshold: a mask claims the pixels of at least this probability.
        filter_low_score: of "mmdet" only.
    """

    protocol: str = "d2"
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    pixel_threshold: float = 0.5
    filter_low_score: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in ("d2", "mmdet"):
            raise UsageError(f"unknown panoptic rule {self.protocol!r}", "Choose d2 or mmdet")
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
    void: Tensor,
    view: View,
    protocol: str,
    rule: PanopticRule,
    things: np.ndarray | Tensor,
    quality: Tensor | None = None,
) -> tuple[np.ndarray, list[Segment]]:
    """Who owns which pixel.

    Queries take part by `rule.object_threshold` on max over [p, void] (ties to the lowest class). A pixel
    belongs to the query with the largest score · sigmoid(mask) (ties to the lowest query), also where that is
    small. Segments are numbered in query order; stuff segments of one class become one, with the best score
    of its masks.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame. Only the rows of taking-part queries are read.
        probs: (Q, K) class probabilities.
        void: (Q,) probability of no object.
        view: how the generator saw the image.
        protocol: where sigmoid stands: see `assemble.upsample`.
        rule: thresholds.
        things: (K,) bool, True for countable classes.
        quality: (Q,) factors in [0, 1] of the scores by which masks compete and segments are reported (see
            `assemble.quality`); None = 1. Which queries take part is left to the class score alone: the threshold was
            chosen for that, and a dropped mask that could not take part cannot with a factor either (design §5).
    Returns:
        ids (H0, W0) int32, 0 = unassigned; and the segments in order of id, each with at least one pixel.
    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shapes disagree.
    """
    check_protocol(protocol)
    check_frame(mask_logits, view)
    things = np.asarray(things, bool)
    if probs.shape != (len(mask_logits), len(things)) or void.shape != (len(mask_logits),):
        raise IncompatibleError(
            f"probabilities {tuple(probs.shape)} and void {tuple(void.shape)} for {len(mask_logits)} masks, "
            f"{len(things)} classes"
        )
    if quality is not None and quality.shape != void.shape:
        raise IncompatibleError(f"quality {tuple(quality.shape)} for {len(mask_logits)} masks")
    scores, labels = torch.cat([probs, void[:, None].to(probs)], 1).float().max(1)
    kept = ((labels < len(things)) & (scores > rule.object_threshold)).nonzero()[:, 0]
    ids = np.zeros(view.original, np.int32)
    if not len(kept):
        return ids, []
    if quality is not None:
        scores = scores * quality.to(scores)
    owner, claimed, areas = _compete(mask_logits[kept.to(mask_logits.device)], scores[kept], view, protocol, rule)

    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    owned_areas = np.bincount(owner.ravel(), minlength=len(kept))
    for index, query in enumerate(kept.tolist()):
        if not owned_areas[index] or not areas[index] or owned_areas[index] / areas[index] < rule.overlap_threshold:
            continue
        pixels = owner == index
        if rule.keeps_only_claimed:
            pixels &= claimed
            if not pixels.any():
                continue
        category, score = int(labels[query]), float(scores[query])
        place = len(segments) if things[category] else stuff.setdefault(category, len(segments))
        if place == len(segments):
            segments.append(Segment(place + 1, category, score, (query,)))
        else:
            known = segments[place]
            segments[place] = replace(known, score=max(score, known.score), masks=(*known.masks, query))
        ids[pixels] = place + 1
    return ids, segments


def _compete(
    mask_logits: Tensor, scores: Tensor, view: View, protocol: str, rule: PanopticRule
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Owner of every pixel (H0, W0) int32, whether the owner claims it (H0, W0) bool, claimed areas of the
    masks.

    One plane at a time: memory does not grow with the number of masks.
    """
    areas = []
    for index, mask in enumerate(iter_mask_probabilities(mask_logits, view, protocol)):
        claims = mask >= rule.pixel_threshold
        areas.append(int(claims.sum()))
        weighted = mask * scores[index].to(mask)
        if index == 0:
            best, claimed, owner = weighted, claims, torch.zeros_like(mask, dtype=torch.int32)
            continue
        wins = weighted > best
        best = torch.where(wins, weighted, best)
        claimed = torch.where(wins, claims, claimed)
        owner.masked_fill_(wins, index)
    return owner.cpu().numpy(), claimed.cpu().numpy(), areas
