"""Registry of instance AP definitions: matching within an image, and AP of all matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitp_pipeline.config.choices import INSTANCE_MEASURES
from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.decoding.rle import Rle
from vitp_pipeline.metrics import cityscapes, instances
from vitp_pipeline.metrics.boundary import boundary_width
from vitp_pipeline.metrics.instances import Detections, Matches, TrueInstances


@dataclass(frozen=True)
class InstanceMeasure:
    """A definition of instance AP.

    Attributes:
        match: detections of every variant, run lengths of their masks, ground truth, K, settings → matches
            of every variant, and (K, areas) int64 instances to find.
        average: (n,) class, score, hit and ignored of all detections, image after image, and the instances to find →
            figures by name, "AP" among them, and (K,) AP by class.
        areas: how many ranges of area instances are counted in.
        title: of AP in tables.
        nothing: message where AP does not exist: what the ground truth lacks.
    """

    match: Callable[
        [Sequence[Detections], list[Rle], TrueInstances, int, EvaluateSettings], tuple[list[Matches], np.ndarray]
    ]
    average: Callable[..., tuple[Mapping[str, Any], np.ndarray]]
    areas: int
    title: str
    nothing: str = "the ground truth has no instance that counts by its rule"


def _match_coco(
    found: Sequence[Detections], rles: list[Rle], truth: TrueInstances, classes: int, settings: EvaluateSettings
) -> tuple[list[Matches], np.ndarray]:
    return _matched(found, instances.overlaps(rles, truth), truth, classes)


def _match_boundary(
    found: Sequence[Detections], rles: list[Rle], truth: TrueInstances, classes: int, settings: EvaluateSettings
) -> tuple[list[Matches], np.ndarray]:
    height, width = truth.void["size"]
    reach = boundary_width((height, width), settings.boundary_ratio)
    at = instances.boundary_overlaps(rles, truth, instances.overlaps(rles, truth), reach)
    return _matched(found, at, truth, classes)


def _matched(
    found: Sequence[Detections], at: instances.Overlaps, truth: TrueInstances, classes: int
) -> tuple[list[Matches], np.ndarray]:
    return [instances.match(f, at, truth) for f in found], instances.true_counts(truth, at.true_areas, classes)


def _average_coco(*columns: np.ndarray) -> tuple[Mapping[str, Any], np.ndarray]:
    result = instances.average_precision(*columns)
    return result.figures(), result.per_class()


def _match_cityscapes(
    found: Sequence[Detections], rles: list[Rle], truth: TrueInstances, classes: int, settings: EvaluateSettings
) -> tuple[list[Matches], np.ndarray]:
    counts = cityscapes.MaskCounts(rles, truth)
    matches = [cityscapes.match(f, counts, truth) for f in found]
    return matches, cityscapes.true_counts(truth, counts.true_areas, classes)


def _average_cityscapes(*columns: np.ndarray) -> tuple[Mapping[str, Any], np.ndarray]:
    values = cityscapes.average_precision(*columns)
    return cityscapes.figures(values), values.mean(1)


INSTANCE_MEASURES.add("coco", InstanceMeasure(_match_coco, _average_coco, len(instances.AREAS), "AP"))
INSTANCE_MEASURES.add("boundary", InstanceMeasure(_match_boundary, _average_coco, len(instances.AREAS), "bAP"))
INSTANCE_MEASURES.add(
    "cityscapes",
    InstanceMeasure(
        _match_cityscapes,
        _average_cityscapes,
        1,
        "csAP",
        f"the ground truth has no instance of {cityscapes.SMALLEST} pixels or more that is no group",
    ),
)
