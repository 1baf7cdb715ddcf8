"""The counts of an image: its masks named under every variant, drawn as maps, held against the ground truth.

A row has sparse confusion, panoptic matches, instances and named masks, per variant (`stages.counts` stores it).
Several views of an image (docs/views.md) are fused one by one, then their class scores are averaged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.parts import ArrayReader, arrays_path, index_path, read_index
from vitp_pipeline.artifacts.proposals import SEVERAL_POINTS, ProposalRecord, by_image, points_of
from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.datasets.components import component_segments
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size
from vitp_pipeline.stages.certain import certain_pixels, check_ring
from vitp_pipeline.stages.counts import CountRows, sparse_confusion
from vitp_pipeline.stages.driver import Turn
from vitp_pipeline.stages.evaluation import Evaluation, variant_of

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from vitp_pipeline.assemble.average import ScoredView
    from vitp_pipeline.datasets.samples import Sample
    from vitp_pipeline.metrics.instances import TrueInstances


@dataclass(frozen=True)
class NamedView:
    """A view's masks (M, h, w) on the device, which queries they are (M,), and under every variant probabilities of all
    queries (V, Q, K) and of no object (V, Q); the likely masks and what they are called.
    """

    record: ProposalRecord
    masks: torch.Tensor
    kept: torch.Tensor
    probs: torch.Tensor
    voids: torch.Tensor
    masks_named: dict[str, np.ndarray]

    @property
    def scored(self) -> ScoredView:
        from vitp_pipeline.assemble.average import ScoredView

        return ScoredView(self.masks, self.probs[:, self.kept], self.record.view)


class CountMaker:
    """Makes parts of an evaluation: one row of counts an image, no arrays."""

    def __init__(self, evaluation: Evaluation, settings: EvaluateSettings, policy: str) -> None:
        from vitp_pipeline.assemble.panoptic import PanopticRule
        from vitp_pipeline.devices import choose_device

        self.evaluation, self.settings, self.policy = evaluation, settings, policy
        self.device = choose_device(settings.device)
        self.things = np.asarray(evaluation.dataset.spec.things)
        self.rule = PanopticRule(settings.panoptic_rule, settings.object_threshold, settings.overlap_threshold)

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, turn: Turn) -> pa.Table:
        rows = CountRows(self.evaluation)
        for image_id, row in self._rows(shard, part, images):
            rows.add(image_id, row)
            turn.advance(1)
            if turn.over():
                break
        return rows.table()

    def _rows(self, shard: int, part: int, images: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Images of a part with their counts, or with why they have none."""
        folder = self.evaluation.classes.shard_folder(shard)
        states = {r["image_id"]: r for r in read_index(index_path(folder, part)).to_pylist()}
        left = deque(images)
        with ArrayReader(arrays_path(folder, part)) as scores:
            worked = [image_id for image_id in images if states[image_id]["status"] == "ok"]
            for views in by_image(self.evaluation.proposals.read_part(shard, part, images=worked)):
                image_id = views[0].image_id
                while (other := left.popleft()) != image_id:
                    yield other, {"error": states[other]["error"]}
                named = ((record, scores.read(f"point_logits/{record.key}")) for record in views)
                yield image_id, self.row(image_id, views[0].view.original, named)
        yield from ((image_id, {"error": states[image_id]["error"]}) for image_id in left)

    def row(
        self, image_id: str, size: Size, views: Iterable[tuple[ProposalRecord, np.ndarray]], keep_views: bool = True
    ) -> dict[str, Any]:
        """The counts of an image, or the error in its ground truth.

        Args:
            size: (H0, W0) of the image.
            views: proposals and (Q, K) point logits of its views.
            keep_views: False: only the running average of class scores is held, no view longer than its turn.
        """
        dataset = self.evaluation.dataset
        try:
            sample = dataset.sample(image_id)
            truth = dataset.read_semantic(sample)
            if truth.shape != size:
                height, width = size
                raise InputError(
                    f"{sample.label}: is {truth.shape[1]}×{truth.shape[0]}, its image {width}×{height}",
                    "Image and label must have the same size",
                )
            if dataset.has_segments:
                segments = dataset.read_panoptic(sample)
            else:
                segments = component_segments(truth, self.things) if self.settings.components else None
            objects = self._instances(sample, truth, segments) if "instance" in self.evaluation.tasks else None
        except InputError as error:
            return {"error": error.message}
        return self._measure(views, truth, segments, objects, keep_views)

    def _instances(self, sample: Sample, truth: np.ndarray, segments) -> TrueInstances:
        """Connected pieces where `components` asks for them; else as the labels list them."""
        from vitp_pipeline.stages.instances import listed_instances, true_instances

        if segments is not None:
            return true_instances(segments, truth, self.things)
        return listed_instances(self.evaluation.dataset.read_instances(sample), truth.shape, self.things)

    def _measure(
        self,
        views: Iterable[tuple[ProposalRecord, np.ndarray]],
        truth: np.ndarray,
        segments,
        objects: TrueInstances | None,
        keep_views: bool,
    ) -> dict[str, Any]:
        from vitp_pipeline.assemble.average import ScoreAverage, averaged_label_maps

        tasks, average = self.evaluation.tasks, None
        kept: list[NamedView] = []
        masks: list[dict[str, np.ndarray]] = []
        for record, point_logits in views:
            if self.settings.protocol:
                record = replace(record, protocol=self.settings.protocol)
            named = self._name(record, point_logits, truth)
            masks.append(named.masks_named)
            if keep_views:
                kept.append(named)
                continue
            average = average or ScoreAverage(record.protocol, record.view.original)
            average.add(*named.scored)
        row: dict[str, Any] = {"masks": {name: np.concatenate([m[name] for m in masks]) for name in masks[0]}}
        if "semantic" in tasks:
            scored = [named.scored for named in kept]
            maps = average.labels() if average else averaged_label_maps(scored, kept[0].record.protocol)
            row["semantic"] = [sparse_confusion(m, truth, len(self.things)) for m in maps]
            if self.settings.certain:
                row["certain"] = self._certain(kept[0])
            if self.settings.boundary_iou:
                row["boundary"] = self._boundaries(maps, truth)
        return row | self._one_view_tasks(kept, segments, objects)

    def _one_view_tasks(self, views: Sequence[NamedView], segments, objects: TrueInstances | None) -> dict[str, Any]:
        """Instance and panoptic counts; `check_views` sees to it that they are asked of single views alone."""
        from vitp_pipeline.assemble.quality import mask_quality
        from vitp_pipeline.stages.instances import image_row

        row: dict[str, Any] = {}
        tasks = self.evaluation.tasks
        if not {"instance", "panoptic"} & set(tasks):
            return row
        (view,) = views
        record, masks = view.record, view.masks
        if "instance" in tasks:
            row |= image_row(record, masks, view.probs, objects, self.things, self.settings)
        if "panoptic" in tasks and segments is not None:
            quality = mask_quality(masks, record.view, record.protocol) if self.settings.mask_quality else None
            probs, voids = view.probs[:, view.kept], view.voids[:, view.kept]
            row["panoptic"] = [
                self._panoptic(masks, p, v, record, segments, quality) for p, v in zip(probs, voids, strict=True)
            ]
        return row

    def _name(self, record: ProposalRecord, point_logits: np.ndarray, truth: np.ndarray) -> NamedView:
        """Names the masks of a view under every variant."""
        import torch

        from vitp_pipeline.assemble.labels import label_at_points, majority_label
        from vitp_pipeline.fusion import fuse, named_probs

        check_ring(record)
        masks = torch.from_numpy(record.masks).to(self.device)
        logits = torch.from_numpy(record.class_logits).to(self.device)
        scores = torch.from_numpy(point_logits).to(self.device)
        kept = torch.from_numpy(record.kept).long().to(self.device)
        policy = "max" if self.policy in SEVERAL_POINTS else self.policy  # the bound needs one point a mask
        by_point = label_at_points(truth, points_of(record, policy))
        by_mask = np.full(len(by_point), IGNORE, by_point.dtype)
        by_mask[record.kept] = majority_label(masks, record.view, truth)
        named = [fuse(logits, scores, alpha, self.settings.formula) for alpha in self.evaluation.alphas]
        void = logits.softmax(1)[:, -1]
        named += [(named_probs(logits, labels), void) for labels in (by_point, by_mask)]
        probs, voids = (torch.stack(values) for values in zip(*named, strict=True))
        found = self._named(probs.argmax(2).cpu().numpy(), void, by_mask)
        found["query"] = found["query"] + record.number * len(void)  # numbered on from view to view
        return NamedView(record, masks, kept, probs, voids, found)

    def _certain(self, view: NamedView) -> np.ndarray:
        """Of the headline: see `certain.FIELDS`."""
        number = self.evaluation.variants.index(self.evaluation.headline)
        found = certain_pixels(view.record, view.masks, view.probs[number], view.kept)
        return np.array([found.sum(), found.size])

    def _panoptic(
        self,
        masks: torch.Tensor,
        probs: torch.Tensor,
        void: torch.Tensor,
        record: ProposalRecord,
        segments,
        quality: torch.Tensor | None,
    ):
        from vitp_pipeline.assemble.panoptic import panoptic_map
        from vitp_pipeline.metrics.panoptic import count

        ids, found = panoptic_map(masks, probs, void, record.view, record.protocol, self.rule, self.things, quality)
        truth_ids, truth_segments = segments
        return count(ids, found, truth_ids, truth_segments, probs.shape[1])

    def _boundaries(self, maps: np.ndarray, truth: np.ndarray) -> list[np.ndarray]:
        """(K, 3) pixels of boundaries of every variant, see `metrics.boundary.boundary_areas`."""
        from vitp_pipeline.metrics.boundary import boundary_areas, boundary_width

        width = boundary_width(truth.shape, self.settings.boundary_ratio)
        return [boundary_areas(m, truth, width, len(self.things)) for m in maps]

    def _named(self, names: np.ndarray, void: torch.Tensor, by_mask: np.ndarray) -> dict[str, np.ndarray]:
        """What the masks that likely are something, and cover labelled pixels, are called. names: (V, Q)."""
        present = 1 - void.double().cpu().numpy()
        matched = np.flatnonzero((present > 0.5) & (by_mask != IGNORE))
        at = {variant: i for i, variant in enumerate(self.evaluation.variants)}
        return {
            "query": matched,
            "present": present[matched],
            "label": by_mask[matched],
            "generator": names[at[variant_of(0)]][matched],
            "classifier": names[at[variant_of(1)]][matched],
            "fused": names[at[self.evaluation.headline]][matched],
        }
