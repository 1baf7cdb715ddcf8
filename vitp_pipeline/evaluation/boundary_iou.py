"""Boundary IoU of semantic maps: mIoU of the pixels near a boundary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitp_pipeline.evaluation.definition import Evaluation
from vitp_pipeline.evaluation.map_metrics import MAP_METRICS, MapMetric, MeasuredImage

FIELDS = {"variant": "int32", "class": "int32"} | dict.fromkeys(("both", "truth", "predicted"), "int64")


def _count(image: MeasuredImage) -> list[np.ndarray]:
    """The classes of each variant that have a boundary."""
    from vitp_pipeline.metrics.boundary import boundary_areas, boundary_width

    height, width = image.truth.shape
    reach = boundary_width((height, width), image.evaluation.settings.boundary_ratio)
    classes = len(image.evaluation.dataset.spec.classes)
    areas = np.stack([boundary_areas(labels, image.truth, reach, classes) for labels in image.maps])
    variant, found = np.nonzero(areas.any(2))
    return [variant, found, *areas[variant, found].T]


def _add(total: np.ndarray, entries: Mapping[str, np.ndarray]) -> None:
    values = np.stack([entries[name] for name in ("both", "truth", "predicted")], 1)
    np.add.at(total, (entries["variant"], entries["class"]), values)


def _figures(evaluation: Evaluation, total: np.ndarray, names: Mapping[str, int]) -> dict[str, Any]:
    from vitp_pipeline.metrics.semantic import ious, mean_iou

    def of(areas: np.ndarray) -> dict[str, Any]:
        per_class = dict(zip(evaluation.dataset.spec.class_names, ious(areas), strict=True))
        return {"boundary_mIoU": float(mean_iou(areas)), "boundary_IoU": per_class}

    return {name: of(total[variant]) for name, variant in names.items()}


MAP_METRICS.add(
    "boundary",
    MapMetric(
        lambda settings: settings.boundary_iou,
        FIELDS,
        _count,
        lambda variants, classes: np.zeros((variants, classes, 3), np.int64),
        _add,
        _figures,
    ),
)
