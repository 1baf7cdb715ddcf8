"""Totals of an evaluation: counts of its images, added up part by part.

Memory is that of the sums and of one part for any number of images, except for the bootstrap of mIoU (22 bytes a
class that occurs in an image, `metrics.bootstrap.SparseAreas`, for 10,000 images at most) and AP, whose detections are
sorted all together.

A finished shard's sums lie beside its parts, so that figures of a thousand shards need not read a million rows:

    _totals.parquet      one row an array: name, type, shape, bytes; sealed like an index, written before done.json

They follow from the parts. Whoever changes a part removes them (`execution.runner`); where there are none, parts are
read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.artifacts.parts import RUN, read_index, sealed_index
from vitp_pipeline.evaluation.count_reader import (
    Pieces,
    Rows,
    add_part,
    areas_of,
    entries_of,
    failures,
    joined,
    missing_shards,
    shard_parts,
)
from vitp_pipeline.evaluation.definition import Evaluation, headline_variants
from vitp_pipeline.evaluation.instances import COLUMNS
from vitp_pipeline.evaluation.map_metrics import asked_metrics
from vitp_pipeline.metrics.bootstrap import SINGLE, BlockAreas, SparseAreas, sparse_areas
from vitp_pipeline.metrics.exact_sum import IouSums
from vitp_pipeline.metrics.panoptic import PanopticCounts
from vitp_pipeline.storage.layout import totals_path

if TYPE_CHECKING:
    import pyarrow as pa


class Totals:
    """Sums over the images that are measured; V variants, K classes.

    Attributes:
        images: number of images, failed ones included.
        failed: (image, reason).
        missing: shards that are not finished.
        areas: (V, K, 3) int64 pixels: intersection, ground truth, predicted.
        metrics: sums of the enabled `MAP_METRICS`.
        paired: areas of images, or of blocks of them, of the variants `compared`, for the bootstrap.
        matches: (V, 3, K) int64 true positives, false positives, false negatives of panoptic segments.
        classified: (S, K, K) int64 masks by majority ground-truth class and predicted class, for each of the S class
            scores `Evaluation.classified_by`.
        detections: entries of `instances.COLUMNS` of all images; empty without instances.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        variants, classes = len(evaluation.variants), len(evaluation.dataset.spec.classes)
        self.images = 0
        self.failed: list[tuple[str, str]] = []
        self.missing: list[int] = []
        self.areas = np.zeros((variants, classes, 3), np.int64)
        self._asked = dict(asked_metrics(evaluation))
        self.metrics = {name: metric.zeros(variants, classes) for name, metric in self._asked.items()}
        count = len(evaluation.run.images)
        numbers = headline_variants(evaluation)
        self._pair = [numbers[name] for name in evaluation.compared]
        results = len(self._pair)
        self.paired = SparseAreas(classes, results) if count <= SINGLE else BlockAreas(classes, results, count)
        self.matches = np.zeros((variants, 3, classes), np.int64)
        self._classified_by = evaluation.classified_by
        self.classified = np.zeros((len(self._classified_by), classes, classes), np.int64)
        self.detections = Rows()
        self._ious = IouSums((variants, classes))

    def add(self, part: pa.Table, first: int) -> None:
        """Add the images of a part, `first` being the number of its first one."""
        self.images += len(part)
        self.failed += failures(part)
        e = entries_of(part, "semantic")
        self.areas += sparse_areas(e["variant"], e["truth"], e["predicted"], e["pixels"], *self.areas.shape[:2])
        pair = np.stack([areas_of(e, variant, len(part), self.areas.shape[1]) for variant in self._pair])
        if isinstance(self.paired, BlockAreas):
            self.paired.add(pair, first)
        else:
            self.paired.add(pair)
        for name, metric in self._asked.items():
            metric.add(self.metrics[name], entries_of(part, name))
        e = entries_of(part, "panoptic")
        for row, name in enumerate(("tp", "fp", "fn")):
            np.add.at(self.matches[:, row], (e["variant"], e["class"]), e[name])
        self._ious.add((e["variant"], e["class"]), e["iou"])
        e = entries_of(part, "masks")
        for counts, name in zip(self.classified, self._classified_by, strict=True):
            np.add.at(counts, (e["label"], e[name]), 1)

    def panoptic(self, variant: int) -> PanopticCounts:
        """The matches of a variant."""
        tp, fp, fn = self.matches[variant]
        return PanopticCounts(tp, fp, fn, self._ious.totals(variant))

    def add_table(self, table: pa.Table) -> None:
        """Add the `table` of another one, in the images' order."""
        about = json.loads(table.schema.metadata[b"vitp"])
        self.images += about["images"]
        self.failed += [(image, reason) for image, reason in about["failed"]]
        found = {
            row["name"]: np.frombuffer(row["content"], row["type"]).reshape(row["shape"]) for row in table.to_pylist()
        }
        for name, sums in self._sums().items():
            sums += found.pop(name)
        self.paired.extend(*(found[f"paired{n}"] for n in range(len(found))))

    def table(self) -> pa.Table:
        """All but the detections."""
        import pyarrow as pa

        arrays = self._sums() | {f"paired{n}": array for n, array in enumerate(self.paired.content())}
        rows = [
            {"name": name, "type": array.dtype.str, "shape": array.shape, "content": array.tobytes()}
            for name, array in arrays.items()
        ]
        columns = {"name": pa.string(), "type": pa.string(), "shape": pa.list_(pa.int64()), "content": pa.binary()}
        about = json.dumps({"images": self.images, "failed": self.failed})
        return pa.Table.from_pylist(rows, pa.schema(list(columns.items()), metadata={"vitp": about}))

    def _sums(self) -> dict[str, np.ndarray]:
        own = {"areas": self.areas, "matches": self.matches, "classified": self.classified, "ious": self._ious.limbs}
        return own | self.metrics


def read_totals(evaluation: Evaluation) -> Totals:
    """Add up all shards; those that are not finished are listed, not read."""
    totals, store = Totals(evaluation), evaluation.run.store
    pieces: Pieces = {}
    totals.missing = missing_shards(evaluation)
    finished = sorted(set(range(evaluation.run.shards)).difference(totals.missing))
    if "instance" not in evaluation.tasks:
        store.fetch_all(totals_path(evaluation.run.shard_folder(shard)) for shard in finished)
    for shard in finished:
        path = totals_path(evaluation.run.shard_folder(shard))
        if "instance" not in evaluation.tasks and store.exists(path):
            totals.add_table(read_index(store.fetch(path), run=evaluation.run.digest))
        else:
            _add_parts(totals, pieces, evaluation, shard)
    joined(totals.detections, pieces)
    return totals


def keep_totals(evaluation: Evaluation, shard: int) -> None:
    """Write the sums of a shard whose parts are all there. Detections cannot be summed: with them, nothing is written.

    Raises:
        StorageError: disk full and its kin.
        CorruptError: a part cannot be read.
    """
    if "instance" in evaluation.tasks:
        return
    totals = Totals(evaluation)
    _add_parts(totals, {}, evaluation, shard)
    table = totals.table()
    about = {**table.schema.metadata, RUN: evaluation.run.digest.encode()}
    path = totals_path(evaluation.run.shard_folder(shard))
    evaluation.run.store.write(path, sealed_index(path, table.replace_schema_metadata(about)))


def _add_parts(totals: Totals, pieces: Pieces, evaluation: Evaluation, shard: int) -> None:
    first = evaluation.run.first_image(shard)
    for part in shard_parts(evaluation, shard):
        totals.add(part, first)
        first += len(part)
        if "instance" in evaluation.tasks:
            add_part(totals.detections, pieces, part, tuple(COLUMNS))
