"""The rows of an evaluation as a table: what a part of it holds on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.columns import list_column
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.evaluation.instances import columns_of
from vitp_pipeline.evaluation.map_metrics import asked_metrics
from vitp_pipeline.metrics.semantic import pair_counts

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.evaluation.definition import Evaluation


def sparse_confusion(labels: np.ndarray, truth: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth class, predicted class or IGNORE, pixels) of every pair that occurs; pixels without ground truth do not
    count.
    """
    pairs = pair_counts(labels, truth, classes)
    true, predicted = np.nonzero(pairs)
    return true, np.where(predicted == classes, IGNORE, predicted), pairs[true, predicted]


SEMANTIC_FIELDS = {"variant": "int32", "truth": "int32", "predicted": "int32", "pixels": "int64"}
PANOPTIC_FIELDS = {"variant": "int32", "class": "int32", "tp": "int64", "fp": "int64", "fn": "int64", "iou": "float64"}


def mask_fields(classified_by: Sequence[str]) -> dict[str, str]:
    """Fields of a classified mask: the class by each of these scores beside the majority of the ground truth."""
    return {"query": "int32", "objectness": "float64"} | dict.fromkeys(("label", *classified_by), "int32")


class CountRows:
    """Collect the rows of a part as Arrow tables, a tenth of the size of the Python objects."""

    TOGETHER = 32
    """Rows converted to a table at once."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._tables: list[pa.Table] = []

    def add(self, image_id: str, row: dict[str, Any]) -> None:
        self._rows.append((image_id, row))
        if len(self._rows) == self.TOGETHER:
            self._flush()

    def table(self) -> pa.Table:
        """All rows; see `counts_table`."""
        import pyarrow as pa

        self._flush()
        return pa.concat_tables(self._tables).combine_chunks()

    def _flush(self) -> None:
        if self._rows or not self._tables:
            self._tables.append(counts_table(self._evaluation, self._rows))
        self._rows = []


def counts_table(evaluation: Evaluation, rows: Sequence[tuple[str, dict[str, Any]]]) -> pa.Table:
    """The rows of a part as a table: image_id, status, error and list columns of counts, three as a rule."""
    import pyarrow as pa

    semantic, panoptic, masks = [], [], []
    of_masks = mask_fields(evaluation.classified_by)
    for _, row in rows:
        found = row.get("semantic", [])
        variants = [np.full(len(c[2]), v) for v, c in enumerate(found)]
        semantic.append([variants, *([c[i] for c in found] for i in range(3))])
        counts = row.get("panoptic", [])
        active = [np.flatnonzero(c.tp + c.fp + c.fn) for c in counts]
        panoptic.append(
            [
                [np.full(len(a), v) for v, a in enumerate(active)],
                active,
                *(
                    [getattr(c, name)[a] for c, a in zip(counts, active, strict=True)]
                    for name in ("tp", "fp", "fn", "iou")
                ),
            ]
        )
        masks.append([[row["masks"][name]] if "masks" in row else [] for name in of_masks])
    columns = {
        "image_id": pa.array([image_id for image_id, _ in rows], pa.string()),
        "status": pa.array(["failed" if "error" in row else "ok" for _, row in rows], pa.string()),
        "error": pa.array([row.get("error") for _, row in rows], pa.string()),
        "semantic": list_column(semantic, SEMANTIC_FIELDS),
        "panoptic": list_column(panoptic, PANOPTIC_FIELDS),
        "masks": list_column(masks, of_masks),
    }
    if "instance" in evaluation.tasks:
        columns |= columns_of([row for _, row in rows])
    for name, metric in asked_metrics(evaluation):
        columns[name] = list_column(
            [[[values] for values in row[name]] if name in row else [[] for _ in metric.fields] for _, row in rows],
            dict(metric.fields),
        )
    about = {
        "fingerprint": evaluation.run.fingerprint,
        "variants": list(evaluation.variants),
        "classes": list(evaluation.dataset.spec.class_names),
    }
    return pa.table(columns, metadata={"vitp": json.dumps(about)})
