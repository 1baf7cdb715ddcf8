"""What the figures of an evaluation are made of: sums over its images, added up part by part.

Memory is that of the sums and of one part, whatever the number of images, but for the bootstrap of mIoU (22 bytes a
class that occurs in an image, `metrics.bootstrap.SparseAreas`) and AP, whose detections are sorted all together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.metrics.bootstrap import SparseAreas
from vitp_pipeline.metrics.exact import IouSums
from vitp_pipeline.metrics.panoptic import PanopticCounts
from vitp_pipeline.stages import certain
from vitp_pipeline.stages.evaluation import Evaluation
from vitp_pipeline.stages.instances import COLUMNS
from vitp_pipeline.stages.rows import (
    STATES,
    Rows,
    add_part,
    areas_of,
    entries_of,
    failures,
    joined,
    missing_shards,
    read_parts,
)

if TYPE_CHECKING:
    import pyarrow as pa

NAMED_BY = ("generator", "classifier", "fused")


class Totals:
    """Sums over the images that are measured; V variants, K classes.

    Attributes:
        images: how many images were looked at, those that failed included.
        failed: (image, reason).
        missing: shards that are not finished.
        areas: (V, K, 3) int64 pixels: intersection, ground truth, predicted.
        boundary: the same of boundaries.
        certain: (2,) int64, sums of `certain.FIELDS`.
        paired: areas of every image under the generator's names and the fused ones, to be resampled.
        matches: (V, 3, K) int64 true positives, false positives, false negatives of panoptic segments.
        named: (3, K, K) int64 masks of a true class (rows) under the names of `NAMED_BY`.
        detections: entries of `instances.COLUMNS` of all images; empty without instances.
    """

    def __init__(self, evaluation: Evaluation, generator: int, fused: int) -> None:
        """Args: an evaluation, and the numbers of these variants."""
        variants, classes = len(evaluation.variants), len(evaluation.dataset.spec.classes)
        self.images = 0
        self.failed: list[tuple[str, str]] = []
        self.missing: list[int] = []
        self.areas = np.zeros((variants, classes, 3), np.int64)
        self.boundary = np.zeros_like(self.areas)
        self.certain = np.zeros(len(certain.FIELDS), np.int64)
        self.paired = SparseAreas(classes, 2)
        self.matches = np.zeros((variants, 3, classes), np.int64)
        self.named = np.zeros((len(NAMED_BY), classes, classes), np.int64)
        self.detections = Rows()
        self._ious = IouSums((variants, classes))
        self._pair = generator, fused

    def add(self, part: pa.Table) -> None:
        """Adds the images of a part."""
        columns = part.column_names[len(STATES) :]
        self.images += len(part)
        self.failed += failures(part)
        e = entries_of(part, "semantic")
        for column, at in ((1, e["truth"]), (2, e["predicted"])):
            np.add.at(self.areas[..., column], (e["variant"], at), e["pixels"])
        same = e["truth"] == e["predicted"]
        np.add.at(self.areas[..., 0], (e["variant"][same], e["truth"][same]), e["pixels"][same])
        self.paired.add(np.stack([areas_of(e, variant, len(part), self.areas.shape[1]) for variant in self._pair]))
        if "boundary" in columns:
            e = entries_of(part, "boundary")
            values = np.stack([e[name] for name in ("both", "truth", "predicted")], 1)
            np.add.at(self.boundary, (e["variant"], e["class"]), values)
        if "certain" in columns:
            e = entries_of(part, "certain")
            self.certain += [e[name].sum() for name in certain.FIELDS]
        e = entries_of(part, "panoptic")
        for row, name in enumerate(("tp", "fp", "fn")):
            np.add.at(self.matches[:, row], (e["variant"], e["class"]), e[name])
        self._ious.add((e["variant"], e["class"]), e["iou"])
        e = entries_of(part, "masks")
        for counts, name in zip(self.named, NAMED_BY, strict=True):
            np.add.at(counts, (e["label"], e[name]), 1)

    def panoptic(self, variant: int) -> PanopticCounts:
        """The matches of a variant."""
        return PanopticCounts(*self.matches[variant], self._ious.totals(variant))


def read_totals(evaluation: Evaluation, generator: int, fused: int) -> Totals:
    """Adds up all parts; shards that are not finished are listed, not read. Arguments as `Totals`."""
    totals, pieces = Totals(evaluation, generator, fused), {}
    totals.missing = missing_shards(evaluation)
    for part in read_parts(evaluation):
        totals.add(part)
        if "instance" in evaluation.tasks:
            add_part(totals.detections, pieces, part, tuple(COLUMNS))
    joined(totals.detections, pieces)
    return totals
