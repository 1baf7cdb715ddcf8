"""Instances in `evaluate`: an image's rows (map), and the figures of all rows (reduce).

Rows of an image: per measure and variant one entry a detection (class, score, and as bits at which thresholds and areas
it matched or counts neither way), per measure, class and area the number of instances to find, and per variant how many
detections there are and how many of them lack a stored mask. 32 bytes a detection before compression; no masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.columns import list_column
from vitp_pipeline.config.choices import INSTANCE_MEASURES
from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.datasets import IGNORE, GroundTruthSegment
from vitp_pipeline.datasets.identity import image_ranks
from vitp_pipeline.datasets.label_kinds.truth import GroundTruthInstance
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.geometry import Size
from vitp_pipeline.metrics.instances import Detections, TrueInstances

if TYPE_CHECKING:
    from vitp_pipeline.evaluation.count_reader import Rows
    from vitp_pipeline.evaluation.definition import Evaluation
    from vitp_pipeline.postprocess.segmenter import InstancesOfView

Segments = tuple[np.ndarray, Sequence[GroundTruthSegment]]

DETECTIONS = dict.fromkeys(("measure", "variant", "class"), "int32") | {"score": "float32"}
DETECTIONS |= dict.fromkeys(("hit", "ignored"), "int64")
TRUTHS = {"measure": "int32", "class": "int32", "area": "int32", "count": "int64"}
FOUND = {"variant": "int32", "detections": "int32", "without_mask": "int32"}
COLUMNS = {"instances": DETECTIONS, "instance_truth": TRUTHS, "instance_found": FOUND}


def image_row(
    found: InstancesOfView, real: TrueInstances, classes: int, settings: EvaluateSettings
) -> dict[str, dict[str, np.ndarray]]:
    """The instance entries of one image, per column of `COLUMNS`.

    Args:
        found: the detected objects of every variant.
        real: the ground truth's, with `void`.
        classes: K.
    """
    rles = [m.rle for m in found.masks]
    objects = [Detections(v.masks, v.categories, v.scores) for v in found.variants]
    detections, truths = [], []
    for number, measure in enumerate(settings.instance_ap):
        matches, counts = INSTANCE_MEASURES[measure].match(objects, rles, real, classes, settings)
        for variant, m in enumerate(matches):
            size = len(m.categories)
            detections.append([np.full(size, number), np.full(size, variant), m.categories, m.scores, m.hit, m.ignored])
        k, a = np.nonzero(counts)
        truths.append([np.full(len(k), number), k, a, counts[k, a]])
    without = np.array([v.without_mask for v in found.variants])
    lengths = (np.arange(len(without)), np.array([len(v.masks) for v in found.variants]) + without, without)
    return {
        "instances": _joined(DETECTIONS, detections),
        "instance_truth": _joined(TRUTHS, truths),
        "instance_found": dict(zip(FOUND, lengths, strict=True)),
    }


def listed_instances(objects: Sequence[GroundTruthInstance], size: Size, things: np.ndarray) -> TrueInstances:
    """The things among the objects of an annotation file of instances, which may overlap; nothing is void there.

    Args:
        size: (H, W) of the image.
        things: (K,) bool.
    """
    wanted = [o for o in objects if things[o.category]]
    return TrueInstances(
        [o.rle for o in wanted],
        np.array([o.category for o in wanted], np.int64),
        np.array([o.iscrowd for o in wanted], bool),
        encode_mask(np.zeros(size, bool)),
        np.array([o.area for o in wanted], np.float64),
    )


def true_instances(segments: Segments, truth: np.ndarray, things: np.ndarray) -> TrueInstances:
    """The things among a ground truth's segments.

    Args:
        segments: its ids and segments.
        truth: (H, W) class indices or IGNORE.
        things: (K,) bool.
    """
    ids, listed = segments
    wanted = [s for s in listed if things[s.category]]
    return TrueInstances(
        [encode_mask(ids == s.id) for s in wanted],
        np.array([s.category for s in wanted], np.int64),
        np.array([s.iscrowd for s in wanted], bool),
        encode_mask(truth == IGNORE),
    )


def _joined(fields: dict[str, str], pieces: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([p[i] for p in pieces]) for i, name in enumerate(fields)}


def figures(evaluation: Evaluation, rows: Rows, names: dict[str, int]) -> dict[str, Any]:
    """AP of the headline's variants per measure, and of the sweep."""
    spec, settings = evaluation.dataset.spec, evaluation.settings
    entries, truths, found = (rows.columns[name] for name in COLUMNS)
    order = np.argsort(image_ranks(rows.images)[entries["image"]], kind="stable")
    entries = {name: values[order] for name, values in entries.items()}

    def of(variant: int, measure: str) -> dict[str, Any]:
        number, definition = settings.instance_ap.index(measure), INSTANCE_MEASURES[measure]
        e = columns_where(entries, variant=variant, measure=number)
        t = columns_where(truths, measure=number)
        counts = np.zeros((len(spec.classes), definition.areas), np.int64)
        np.add.at(counts, (t["class"], t["area"]), t["count"])
        columns = (e[name] for name in ("class", "score", "hit", "ignored"))
        totals, per_class = definition.average(*columns, counts)
        things = {n: p for n, p, thing in zip(spec.class_names, per_class, spec.things, strict=True) if thing}
        return {**totals, "per_class": things, "classes": int((counts[:, 0] > 0).sum())}

    result: dict[str, Any] = {name: {m: of(v, m) for m in settings.instance_ap} for name, v in names.items()}
    first = settings.instance_ap[0]
    if evaluation.fuses:
        result["sweep"] = [{"alpha": a, "AP": of(i, first)["AP"]} for i, a in enumerate(evaluation.alphas)]
    headline = columns_where(found, variant=names[evaluation.classified_by[-1]])
    result["detections"] = {
        "of": int(headline["detections"].sum()),
        "without_mask": int(headline["without_mask"].sum()),
        "most_per_image": settings.detections,
    }
    return result


def columns_where(columns: dict[str, np.ndarray], **wanted: int) -> dict[str, np.ndarray]:
    chosen = np.logical_and.reduce([columns[name] == value for name, value in wanted.items()])
    return {name: values[chosen] for name, values in columns.items()}


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The columns of a part's table from the `image_row`s of its images (those of failed images are empty)."""
    return {
        name: list_column([[[row[name][f]] if name in row else [] for f in fields] for row in rows], fields)
        for name, fields in COLUMNS.items()
    }
