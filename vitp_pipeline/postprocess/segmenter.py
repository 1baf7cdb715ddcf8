"""Turn one image's proposals and class scores into fused scores and maps, by the settings of a run.

This is the one place where the keys of [evaluate] that change a map act: `protocol`, `formula`, α, the panoptic rule
and its thresholds, `overlap`, `mask_quality`, `detections`. `evaluate`, `export-results`, `predict`, the report and the
demo all call it:

    segmenter = Segmenter(settings, things)
    view = segmenter.score(record, point_logits, alphas=(0.0, 0.4))
    segmenter.semantic([view])      # one label map per α
    segmenter.panoptic(view)        # ids and segments per α
    segmenter.instances(view)       # detected objects per α
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.artifacts.pixel_groups import PixelGroups
from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.decoding.rle import Rle
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.postprocess.fusion import fuse, probs_of_labels
from vitp_pipeline.postprocess.instance import InstanceMask, Pairs, best_pairs, instance_masks
from vitp_pipeline.postprocess.mask_quality import mask_quality
from vitp_pipeline.postprocess.overlaps.maps import opaque_label_maps
from vitp_pipeline.postprocess.panoptic import PanopticRule, Segment, panoptic_map
from vitp_pipeline.postprocess.upsample import source_reach
from vitp_pipeline.postprocess.view_average import ScoreAverage, ScoredView, averaged_label_maps
from vitp_pipeline.runtime.devices import choose_device


@dataclass(frozen=True)
class FusedView:
    """One view of an image with its class scores under V variants.

    Attributes:
        record: the view's proposals; its `protocol` applies to maps.
        masks: (M, h, w) float logits of the kept queries, on the segmenter's device.
        kept: (M,) int64, which queries these are.
        probs: (V, Q, K) float32 class probabilities of all queries.
        no_object: (V, Q) float32 probabilities of no object.
        groups: of the image's pixels, where record and masks are of one row of them; None: they are the image's.
    """

    record: ProposalRecord
    masks: Tensor
    kept: Tensor
    probs: Tensor
    no_object: Tensor
    groups: PixelGroups | None = None

    def only(self, variant: int) -> FusedView:
        """The view with one of its variants."""
        chosen = slice(variant, variant + 1)
        return replace(self, probs=self.probs[chosen], no_object=self.no_object[chosen])

    @property
    def scored(self) -> ScoredView:
        """The kept queries as `ScoreAverage` takes them."""
        return ScoredView(self.masks, self.probs[:, self.kept], self.record.view)

    @property
    def pixels(self) -> np.ndarray | None:
        """Sizes of the groups, if there are any."""
        return None if self.groups is None else self.groups.sizes

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of the pixels of the image (…, H, W) from a map of the record's view."""
        return values if self.groups is None else self.groups.spread(values)


@dataclass(frozen=True)
class DetectedInstances:
    """The detected objects of one variant, best first.

    Attributes:
        masks: (D,) places in `InstancesOfView.masks`.
        categories: (D,) class indices.
        scores: (D,) float32 in [0, 1].
        without_mask: how many more detections there are whose masks are not stored.
    """

    masks: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    without_mask: int


@dataclass(frozen=True)
class InstancesOfView:
    """Masks at image resolution, computed once, and the detected objects of each variant."""

    masks: tuple[InstanceMask, ...]
    variants: tuple[DetectedInstances, ...]

    def rles(self, variant: int = 0) -> list[Rle]:
        """Run lengths of a variant's objects, in their order."""
        return [self.masks[m].rle for m in self.variants[variant].masks]


class Segmenter:
    """The rules by which a run turns scores and masks into maps.

    Args:
        settings: of [evaluate]; those that change a map (`evaluation.MAP_KEYS`) act here and nowhere else.
        things: (K,) bool, True for countable classes.
    Raises:
        UsageError: an unknown rule, or a threshold outside [0, 1].
    """

    def __init__(self, settings: EvaluateSettings, things: Sequence[bool] | np.ndarray) -> None:
        self.settings, self.things = settings, np.asarray(things, bool)
        self.device = choose_device(settings.device)
        self.rule = PanopticRule(settings.panoptic_rule, settings.object_threshold, settings.overlap_threshold)

    def check_views(self, one_whole: bool) -> None:
        """Raise UsageError for other views of an image than a single whole one where `overlap` is not the sum: masks of
        several views have no common order.
        """
        if self.settings.overlap != "sum" and not one_whole:
            raise UsageError(
                f"overlap = {self.settings.overlap!r} needs one view of an image",
                'Set overlap = "sum" in [evaluate], or generate proposals without scales, flip and window',
            )

    def score(
        self,
        record: ProposalRecord,
        point_logits: np.ndarray | None,
        alphas: Sequence[float] | None = None,
        labels: Sequence[np.ndarray] = (),
    ) -> FusedView:
        """Fuse both class scores of a view.

        Args:
            record: proposals with masks and class logits; maps are made by groups of pixels where it has such.
            point_logits: (Q, K) logits of the classifier; None without one, where all α must be 0.
            alphas: one variant for each weight of the classifier in [0, 1]; None = the settings' own.
            labels: (Q,) class indices or IGNORE, one further variant for each: the upper bounds.
        Raises:
            UsageError: an α outside [0, 1], or one above 0 without a classifier.
            IncompatibleError: shapes disagree, or the stored background is too coarse for this view.
        """
        groups = record.groups
        view = record.view if groups is None else groups.view
        record = replace(record, protocol=self.settings.protocol or record.protocol, view=view)
        _check_ring(record)
        alphas = (self.settings.alpha,) if alphas is None else alphas
        logits = torch.from_numpy(record.class_logits).to(self.device)
        if point_logits is None and any(alphas):
            raise UsageError(f"α = {max(alphas):g} needs the scores of a classifier", "Use α = 0: the generator alone")
        # without a classifier its scores are not read, as α is 0
        points = torch.zeros_like(logits[:, :-1]) if point_logits is None else torch.from_numpy(point_logits)
        fused = [fuse(logits, points.to(self.device), alpha, self.settings.formula) for alpha in alphas]
        no_object = logits.softmax(1)[:, -1]
        fused += [(probs_of_labels(logits, label), no_object) for label in labels]
        probs, none = (torch.stack(values) for values in zip(*fused, strict=True))
        masks = torch.from_numpy(record.masks).to(self.device)
        return FusedView(record, masks, torch.from_numpy(record.kept).long().to(self.device), probs, none, groups)

    def semantic(self, views: Sequence[FusedView]) -> np.ndarray:
        """Label every pixel with the class of the largest score, averaged over all views of the image; under another
        rule of `overlap` than the sum, with that of the topmost mask.

        Returns:
            (V, H, W) int16 class indices; IGNORE all over where no view has a mask.
        Raises:
            UsageError: several views and another rule than the sum.
        """
        if self.settings.overlap != "sum":
            self.check_views(len(views) == 1 and views[0].record.view.whole)
            view = views[0]
            labels = opaque_label_maps(*view.scored, view.record.protocol, self.settings.overlap, view.pixels)
        else:
            labels = averaged_label_maps([view.scored for view in views], views[0].record.protocol)
        return views[0].spread(labels)

    def running_average(self, view: FusedView) -> ScoreAverage:
        """The same for views that come one by one and are not kept: `add(*view.scored)`, then `labels()`."""
        self.check_views(one_whole=False)
        return ScoreAverage(view.record.protocol, view.record.view.original)

    def panoptic(self, view: FusedView) -> list[tuple[np.ndarray, list[Segment]]]:
        """Give every pixel to at most one segment.

        Returns:
            per variant (H, W) int32 ids, 0 = none, and the segments; their `masks` are places among the kept queries.
        """
        frame = (view.record.view, view.record.protocol)
        rules = (self.rule, self.things)
        quality = mask_quality(view.masks, *frame, pixels=view.pixels) if self.settings.mask_quality else None
        found = [
            panoptic_map(view.masks, probs, none, *frame, *rules, quality, self.settings.overlap, view.pixels)
            for probs, none in zip(view.probs[:, view.kept], view.no_object[:, view.kept], strict=True)
        ]
        return [(view.spread(ids), segments) for ids, segments in found]

    def instances(self, view: FusedView) -> InstancesOfView:
        """Detect objects: the best pairs of a mask and a class, and the masks at image resolution."""
        place = np.full(view.probs.shape[1], -1)
        place[view.record.kept] = np.arange(len(view.record.kept))
        pairs = [best_pairs(probs, self.things, self.settings.detections) for probs in view.probs]
        stored = [p.of(place[p.queries] >= 0) for p in pairs]
        used = np.unique(np.concatenate([place[p.queries] for p in stored]))
        masks = instance_masks(view.masks[used], view.record.view, view.record.protocol, view.groups)
        quality = np.array([m.quality for m in masks], np.float32)

        def detected(every: Pairs, kept: Pairs) -> DetectedInstances:
            mask = np.searchsorted(used, place[kept.queries])
            scores = kept.probs * quality[mask]
            return DetectedInstances(mask, kept.categories, scores, len(every) - len(kept))

        return InstancesOfView(tuple(masks), tuple(map(detected, pairs, stored)))


def _check_ring(record: ProposalRecord) -> None:
    """Raise IncompatibleError when background was floored, or rounded, nearer to a mask than its view reads."""
    loss = record.loss
    if loss and (loss.floor is not None or loss.graded) and (need := source_reach(record.view)) > loss.ring:
        raise IncompatibleError(
            f"{record.image_id}: its background is floored or coarser up to {loss.ring} cells from a mask, "
            f"and a pixel of the image reads cells {need} apart",
            'Generate proposals with masks = "lossless"',
        )
