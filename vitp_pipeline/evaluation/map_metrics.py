"""Registry of metrics of semantic maps beside mIoU: counts per image, their sums, and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.evaluation.definition import Evaluation
from vitp_pipeline.validation.registry import Registry

if TYPE_CHECKING:
    from vitp_pipeline.postprocess.segmenter import FusedView


@dataclass(frozen=True)
class MeasuredImage:
    """An image whose maps are compared with the ground truth.

    Attributes:
        maps: (V, H, W) int16 class indices of every variant.
        truth: (H, W) int16 class indices or IGNORE.
        views: of the image; empty where several views were averaged one by one.
    """

    evaluation: Evaluation
    maps: np.ndarray
    truth: np.ndarray
    views: Sequence[FusedView]


@dataclass(frozen=True)
class MapMetric:
    """A metric with its own counts, which add up over images.

    Attributes:
        wanted: whether the settings ask for it.
        fields: of an entry of an image's row, with Arrow's names of their types.
        count: an image's entries: an array for each of `fields`, all of one length.
        zeros: (variants, classes) → the sum of no image, int64.
        add: adds entries, by field, to such a sum.
        figures: (evaluation, sum, number of each headline variant) → figures of a variant under its name, or of all.
    """

    wanted: Callable[[EvaluateSettings], bool]
    fields: Mapping[str, str]
    count: Callable[[MeasuredImage], Sequence[np.ndarray]]
    zeros: Callable[[int, int], np.ndarray]
    add: Callable[[np.ndarray, Mapping[str, np.ndarray]], None]
    figures: Callable[[Evaluation, np.ndarray, Mapping[str, int]], dict[str, Any]]


MAP_METRICS: Registry[MapMetric] = Registry(
    "metric of maps", "vitp_pipeline.evaluation.boundary_iou", "vitp_pipeline.evaluation.certainty"
)


def asked_metrics(evaluation: Evaluation) -> Iterator[tuple[str, MapMetric]]:
    """Yield the metrics enabled in an evaluation."""
    for name in MAP_METRICS if "semantic" in evaluation.tasks else ():
        if MAP_METRICS[name].wanted(evaluation.settings):
            yield name, MAP_METRICS[name]
