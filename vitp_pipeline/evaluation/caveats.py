"""Notes on the figures: why one is exactly zero, does not exist, or is only approximate.

A wrongly prepared dataset gives 0 without an error, so the counts behind a headline of exactly 0 are explained. A
figure that does not exist (`figure`) gets the reason: what the ground truth or the predictions lack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.config.choices import INSTANCE_MEASURES
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS
from vitp_pipeline.evaluation.definition import headline_variants
from vitp_pipeline.evaluation.instances import columns_where
from vitp_pipeline.figure import Figure

if TYPE_CHECKING:
    from vitp_pipeline.evaluation.definition import Evaluation
    from vitp_pipeline.evaluation.totals import Totals

NO_PQ = "no PQ: "


def notes(evaluation: Evaluation, totals: Totals, result: dict[str, Any]) -> list[str]:
    """One line each, about the headline figures of `result`."""
    lines = []
    if evaluation.has_random_weights:
        lines.append('the generator has random weights (checkpoint = "random"): its figures mean nothing')
    if evaluation.settings.components and not evaluation.dataset.has_segments:
        what = "components = true" if _lists_objects(evaluation) else "they do not separate objects"
        lines.append(f"instances are connected pieces of the labels' classes: {what}")
    if _lacks_segments(evaluation):
        hint = "with components = true in [evaluate], connected pieces of things stand in (docs/metrics.md)"
        lines.append(f"{NO_PQ}labels of the kind {evaluation.dataset.spec.kind} have no segments; {hint}")
    for name in evaluation.compared:  # a zero of the upper bounds has the same cause
        variant = headline_variants(evaluation)[name]
        if result["semantic"]:
            miou = result["semantic"][name]["mIoU"]
            lines += _of(name, "mIoU", miou, partial(_semantic, variant, evaluation, totals))
        if result["panoptic"]:
            pq = result["panoptic"][name]["all"]["PQ"]
            lines += _of(name, "PQ", pq, partial(_panoptic, variant, evaluation, totals))
            lines += _of_groups(name, variant, evaluation, totals, result["panoptic"][name])
        if result.get("instance"):
            (first, ap), *others = ((rule, found["AP"]) for rule, found in result["instance"][name].items())
            lines += _of(name, "AP", ap, partial(_instance, variant, evaluation, totals))
            for rule, value in others if ap is not None else ():
                if value is None:
                    lines.append(f"AP ({rule}) does not exist: {INSTANCE_MEASURES[rule].nothing}")
                elif value == 0 < ap:
                    reason = f"by its rule no detection matches an instance of its class, by that of {first} some do"
                    lines.append(f"AP ({rule}) of {name} is exactly 0: {reason}")
    if result.get("instance") and (missing := result["instance"]["detections"])["without_mask"]:
        lines.append(
            f"AP is approximate: of {missing['of']} detections {missing['without_mask']} have no stored mask "
            '(generate proposals with masks = "lossless" for the exact figure)'
        )
    elif result.get("instance") and not evaluation.codec.keeps_all:
        lines.append('AP is approximate: stored masks are rounded (masks = "lossless" for the exact figure)')
    if result["semantic"] and (threshold := evaluation.codec.drop_threshold):
        lines.append(f"mIoU is approximate: masks with 1 − v ≤ {threshold:g} are not stored (drop_threshold)")
    return list(dict.fromkeys(lines))


def _lacks_segments(evaluation: Evaluation) -> bool:
    """True if PQ was asked for on a dataset whose objects are not separated."""
    left_out = "panoptic" in evaluation.settings.tasks and "panoptic" not in evaluation.tasks
    return left_out and not _lists_objects(evaluation) and any(evaluation.dataset.spec.things)


def _lists_objects(evaluation: Evaluation) -> bool:
    return LABEL_KINDS[evaluation.dataset.spec.kind].has_objects


def _of(name: str, metric: str, value: Figure, reason: Callable[[], str]) -> list[str]:
    if value is None:
        return [f"{metric} does not exist: {NOTHING[metric]}"]
    return [f"{metric} of {name} is exactly 0: {reason()}"] if value == 0 else []


def _of_groups(name: str, variant: int, evaluation: Evaluation, totals: Totals, found: dict[str, Any]) -> Iterator[str]:
    """Explain an undefined or zero PQ of things or stuff where the PQ of all classes is defined and above 0."""
    things, (tp, _, fn) = np.array(evaluation.dataset.spec.things), totals.matches[variant]
    for group, of in (("things", things), ("stuff", ~things)):
        if found["all"]["PQ"] is not None and found[group]["PQ"] is None:
            yield f"PQ of {group} does not exist: {NOTHING[group] if of.any() else f'no class is {group}'}"
        elif found["all"]["PQ"] and found[group]["PQ"] == 0 and (tp + fn)[of].any():
            yield f"PQ of {group} of {name} is exactly 0: {_panoptic(variant, evaluation, totals, of)}"


NOTHING = {
    "mIoU": "the ground truth has no labeled pixel (all ignored)",
    "PQ": "the ground truth has no segment",
    "AP": "the ground truth has no instance of a thing (only crowds, or only stuff)",
    "things": "neither ground truth nor predictions have a segment of a thing",
    "stuff": "neither ground truth nor predictions have a segment of stuff",
}


def _semantic(variant: int, evaluation: Evaluation, totals: Totals) -> str:
    truth, predicted = (np.flatnonzero(totals.areas[variant, :, column]) for column in (1, 2))
    return _classes(evaluation, truth, predicted, "no pixel has its ground-truth class as predicted class")


def _panoptic(variant: int, evaluation: Evaluation, totals: Totals, of: np.ndarray | None = None) -> str:
    tp, fp, fn = totals.matches[variant] if of is None else totals.matches[variant] * of
    predicted = np.flatnonzero(tp + fp)
    if not len(predicted):
        threshold = evaluation.settings.object_threshold
        return f"no segment was predicted (or only over void): is object_threshold = {threshold:g} too high?"
    return _classes(evaluation, np.flatnonzero(fn), predicted, "no segment has IoU > 0.5 with one of its class")


def _instance(variant: int, evaluation: Evaluation, totals: Totals) -> str:
    rows = totals.detections
    e = columns_where(rows.columns["instances"], variant=variant)
    if not len(e["class"]):
        return "nothing was detected: no thing is among the best (mask, class) pairs, or their masks were not stored"
    truth = rows.columns["instance_truth"]["class"]
    return _classes(evaluation, truth, e["class"], "no detection has IoU ≥ 0.5 with an instance of its class")


def _classes(evaluation: Evaluation, truth: np.ndarray, predicted: np.ndarray, otherwise: str) -> str:
    shared = np.intersect1d(truth, predicted)
    if len(shared):
        return otherwise
    names = evaluation.dataset.spec.class_names
    return (
        f"the ground truth has only {_some(names[k] for k in np.unique(truth))}, the predictions have only "
        f"{_some(names[k] for k in np.unique(predicted))}: do manifest, generator and classifier order them alike?"
    )


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
