"""Count one image: classify its masks under every variant, make maps, compare them with the ground truth.

A row has sparse confusion, panoptic matches, instances and classified masks, per variant (`count_tables` stores it).
Several views of an image (docs/views.md) are fused one by one, then their class scores are averaged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.proposals import ProposalRecord, by_image, points_of
from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.datasets.components import component_segments
from vitp_pipeline.errors import InputError
from vitp_pipeline.evaluation.count_tables import CountRows, sparse_confusion
from vitp_pipeline.evaluation.definition import Evaluation, headline_variants
from vitp_pipeline.evaluation.map_metrics import MeasuredImage, asked_metrics
from vitp_pipeline.evaluation.point_scores import open_scores
from vitp_pipeline.execution.runner import WorkBudget
from vitp_pipeline.geometry import Size

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.datasets.label_kinds.truth import Truth
    from vitp_pipeline.evaluation.instances import Segments
    from vitp_pipeline.metrics.instances import TrueInstances
    from vitp_pipeline.postprocess.segmenter import FusedView


class CountMaker:
    """Makes parts of an evaluation: one row of counts an image, no arrays."""

    def __init__(self, evaluation: Evaluation, settings: EvaluateSettings, policy: str) -> None:
        self.evaluation, self.settings, self.policy = evaluation, settings, policy
        self.segmenter = evaluation.segmenter
        self.things = self.segmenter.things

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        rows = CountRows(self.evaluation)
        with self.evaluation.dataset.reading_ahead(images, labels=True):
            for image_id, row in self._rows(shard, part, images):
                rows.add(image_id, row)
                budget.advance(1)
                if budget.over():
                    break
        return rows.table()

    def _rows(self, shard: int, part: int, images: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the images of a part with their counts, or with the error."""
        proposals, left = self.evaluation.proposals, deque(images)
        with open_scores(proposals, self.evaluation.class_scores, shard, part) as scores:
            worked = [image_id for image_id in images if image_id not in scores.errors]
            for views in by_image(proposals.read_part(shard, part, worked, grouped=True)):
                image_id = views[0].image_id
                while (other := left.popleft()) != image_id:
                    yield other, {"error": scores.errors[other]}
                scored_views = ((record, scores.of(record)) for record in views)
                yield image_id, self.row(image_id, views[0].view.original, scored_views)
        yield from ((image_id, {"error": scores.errors[image_id]}) for image_id in left)

    def row(
        self,
        image_id: str,
        size: Size,
        views: Iterable[tuple[ProposalRecord, np.ndarray | None]],
        keep_views: bool = True,
    ) -> dict[str, Any]:
        """The counts of an image, or the error in its ground truth.

        Args:
            size: (H0, W0) of the image.
            views: proposals and (Q, K) point logits of its views, None without a classifier.
            keep_views: False: keep only the running average of class scores, one view in memory at a time.
        """
        dataset = self.evaluation.dataset
        try:
            sample = dataset.sample(image_id)
            read = dataset.read_truth(sample)
            truth = read.semantic()
            if truth.shape != size:
                height, width = size
                raise InputError(
                    f"{sample.label}: is {truth.shape[1]}×{truth.shape[0]}, its image {width}×{height}",
                    "Image and label must have the same size",
                )
            segments: Segments | None = None
            if dataset.has_segments:
                segments = dataset.panoptic_of(read)
            elif self.settings.components:
                segments = component_segments(truth, self.things)
            objects = self._instances(read, size, truth, segments) if "instance" in self.evaluation.tasks else None
        except InputError as error:
            return {"error": error.message}
        return self._measure(views, truth, segments, objects, keep_views)

    def _instances(self, read: Truth, size: Size, truth: np.ndarray, segments: Segments | None) -> TrueInstances:
        """Return connected components if `components` is set, else the segments of the labels."""
        from vitp_pipeline.evaluation.instances import listed_instances, true_instances

        if segments is not None:
            return true_instances(segments, truth, self.things)
        return listed_instances(read.instances(self.evaluation.dataset.spec.things), size, self.things)

    def _measure(
        self,
        views: Iterable[tuple[ProposalRecord, np.ndarray | None]],
        truth: np.ndarray,
        segments: Segments | None,
        objects: TrueInstances | None,
        keep_views: bool,
    ) -> dict[str, Any]:
        tasks, average = self.evaluation.tasks, None
        kept: list[FusedView] = []
        masks: list[dict[str, np.ndarray]] = []
        for record, point_logits in views:
            view, by_mask = self._score(record, point_logits, truth)
            masks.append(self._classified(view, by_mask))
            if keep_views:
                kept.append(view)
                continue
            average = average or self.segmenter.running_average(view)
            average.add(*view.scored)
        row: dict[str, Any] = {"masks": {name: np.concatenate([m[name] for m in masks]) for name in masks[0]}}
        if "semantic" in tasks:
            maps = average.labels() if average else self.segmenter.semantic(kept)
            row["semantic"] = [sparse_confusion(m, truth, len(self.things)) for m in maps]
            image = MeasuredImage(self.evaluation, maps, truth, kept)
            row |= {name: metric.count(image) for name, metric in asked_metrics(self.evaluation)}
        return row | self._one_view_tasks(kept, segments, objects)

    def _one_view_tasks(
        self, views: Sequence[FusedView], segments: Segments | None, objects: TrueInstances | None
    ) -> dict[str, Any]:
        """Instance and panoptic counts; `check_views` ensures that the image has a single view."""
        from vitp_pipeline.evaluation.instances import image_row
        from vitp_pipeline.metrics.panoptic import count

        row: dict[str, Any] = {}
        tasks = self.evaluation.tasks
        if not {"instance", "panoptic"} & set(tasks):
            return row
        (view,) = views
        if objects is not None:
            row |= image_row(self.segmenter.instances(view), objects, len(self.things), self.settings)
        if "panoptic" in tasks and segments is not None:
            true_ids, real = segments
            maps = self.segmenter.panoptic(view)
            row["panoptic"] = [count(ids, found, true_ids, real, len(self.things)) for ids, found in maps]
        return row

    def _score(
        self, record: ProposalRecord, point_logits: np.ndarray | None, truth: np.ndarray
    ) -> tuple[FusedView, np.ndarray]:
        """Score a view under every variant; also return (Q,) the majority ground-truth class of each mask."""
        import torch

        from vitp_pipeline.postprocess.mask_labels import label_at_points, majority_label, majority_label_of_groups

        points = points_of(record, self.policy)
        if len(points) != len(record.class_logits):  # several points per mask; the upper bound needs one
            points = points_of(record, "max")
        by_point = label_at_points(truth, points)
        by_mask = np.full(len(by_point), IGNORE, by_point.dtype)
        if record.groups:
            by_mask[record.kept] = majority_label_of_groups(record.masks, record.groups, truth)
        else:
            masks = torch.from_numpy(record.masks).to(self.segmenter.device)
            by_mask[record.kept] = majority_label(masks, record.view, truth)
        return self.segmenter.score(record, point_logits, self.evaluation.alphas, (by_point, by_mask)), by_mask

    def _classified(self, view: FusedView, by_mask: np.ndarray) -> dict[str, np.ndarray]:
        """Return the predicted classes of masks with objectness above 0.5 that cover labeled pixels.

        Args:
            by_mask: (Q,) majority ground-truth classes.
        """
        objectness = 1 - view.no_object[-1].double().cpu().numpy()  # the generator's own, as of every upper bound
        matched = np.flatnonzero((objectness > 0.5) & (by_mask != IGNORE))
        classes = view.probs.argmax(2).cpu().numpy()
        at = headline_variants(self.evaluation)
        return {
            "query": matched + view.record.number * len(by_mask),  # numbered on from view to view
            "objectness": objectness[matched],
            "label": by_mask[matched],
            **{name: classes[at[name]][matched] for name in self.evaluation.classified_by},
        }
