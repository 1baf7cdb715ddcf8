"""The paper's Figure 1: the first figure of every task for generator, fused and upper bound, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitp_pipeline.figure import Figure
from vitp_pipeline.report import figures
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation

BARS = {
    "generator": "generator",
    "classifier": "classifier",
    "fused": "fused",
    "upper_bound_point": "upper bound (point labels)",
}
"""Variants that have bars, in order, with their names in the legend."""
TASK_ORDER = ("panoptic", "instance", "semantic")
"""Order of the tasks in the paper's figure."""


@dataclass(frozen=True)
class TaskBars:
    """The bars of one task in one evaluation.

    Attributes:
        task: as in result.json.
        metric: its first figure: "PQ", "AP" (COCO's) or "mIoU".
        values: variant of `BARS` → figure in [0, 1], or None where there is nothing to measure.
    """

    task: str
    metric: str
    values: dict[str, Figure]


def task_bars(stored: StoredEvaluation) -> list[TaskBars]:
    """Return the bars of every measured task.

    The upper bound is that of point labels: every mask has the ground-truth class at its point, as in the paper (§3.2).
    Masks without class scores have the classifier in place of generator and fused.
    """
    found = []
    for task in sorted(figures.tasks_of(stored), key=TASK_ORDER.index):
        table = figures.headline_table(stored, task)
        first = {row["variant"]: row["values"][0] for row in table["rows"]}
        variants = (*stored.evaluation.compared, "upper_bound_point")
        name = table["columns"][0].removesuffix(" coco")
        found.append(TaskBars(task, name, {variant: first.get(variant) for variant in variants}))
    return found


def by_metric(evaluations: Sequence[Sequence[TaskBars]]) -> list[tuple[str, list[int]]]:
    """Group several evaluations: (metric, numbers of those that have it), in the order of tasks."""
    tasks = {(TASK_ORDER.index(bars.task), bars.metric) for own in evaluations for bars in own}
    return [
        (metric, [i for i, own in enumerate(evaluations) if any(bars.metric == metric for bars in own)])
        for _, metric in sorted(tasks)
    ]


def variants_of(evaluations: Sequence[Sequence[TaskBars]]) -> list[str]:
    """The variants that any of the evaluations has, in the order of `BARS`."""
    there = {variant for own in evaluations for bars in own for variant in bars.values}
    return [variant for variant in BARS if variant in there]


def value_of(own: Sequence[TaskBars], metric: str, variant: str) -> Figure:
    """One figure of an evaluation, None where it has none."""
    return next((bars.values.get(variant) for bars in own if bars.metric == metric), None)
