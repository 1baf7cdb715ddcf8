"""Numbers of a report, from the result and rows of an evaluation, for every measured task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vitp_pipeline.config.choices import TASKS
from vitp_pipeline.evaluation.count_reader import Rows
from vitp_pipeline.evaluation.definition import HEADLINE, headline_variants
from vitp_pipeline.figure import difference
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation

TITLES = {
    "generator": "generator alone (α = 0)",
    "classifier": "classifier alone (α = 1)",
    "upper_bound_point": "upper bound (point labels)",
    "upper_bound_mask": "upper bound (mask labels)",
}
WORDS = {
    "pixel_accuracy": "pixel accuracy",
    "mIoU_union": "mIoU (union)",
    "boundary_mIoU": "boundary mIoU",
    "boundary_IoU": "boundary IoU",
    "per_class": "AP",
    **{f"AP_{size}": f"AP {size}" for size in ("small", "medium", "large")},
}
ORDER = (
    *("mIoU", "PQ", "AP", "SQ", "RQ", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("pixel accuracy", "mAcc", "boundary mIoU", "mIoU (union)"),
)
MEANT = {
    "mIoU (union)": "mIoU is the mean over the classes that the ground truth holds; in mIoU (union) classes that were "
    "only predicted count as 0."
}
"""Notes on columns whose heading is not enough."""
GROUPS = ("", "coco", "things", "stuff")
"""Figures and groups that come first in a table; the others follow in the order of the result."""


def alpha_text(stored: StoredEvaluation) -> str:
    """Weight of the classifier in the headline."""
    if stored.evaluation.class_agnostic:
        return "masks without class scores"
    if not stored.evaluation.fuses:
        return "without a classifier"
    return f"α = {stored.evaluation.alpha:g}"


def title_of(variant: str, stored: StoredEvaluation) -> str:
    return f"fused ({alpha_text(stored)})" if variant == "fused" else TITLES[variant]


def tasks_of(stored: StoredEvaluation) -> tuple[str, ...]:
    """The tasks that were measured."""
    return tuple(task for task in TASKS if stored.result.get(task))


def task_figures(stored: StoredEvaluation, task: str, variant: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the figures of one variant.

    Returns:
        (figure by its name, in [0, 1] or None; per-class figures by name, each class name → value or None)
    """
    totals: dict[str, Any] = {}
    per_class: dict[str, dict[str, Any]] = {}
    _collect(stored.result[task].get(variant, {}), set(stored.classes), (), totals, per_class)
    return totals, per_class


def _collect(
    value: dict[str, Any],
    classes: set[str],
    path: tuple[str, ...],
    totals: dict[str, Any],
    per_class: dict[str, dict[str, Any]],
) -> None:
    for key, entry in value.items():
        group = [p for p in path if p != "all"]
        name = " ".join([WORDS.get(key, key), *group])
        if isinstance(entry, dict) and entry and set(entry) <= classes:
            per_class[name] = entry
        elif isinstance(entry, dict):
            _collect(entry, classes, (*path, key), totals, per_class)
        elif entry is None or isinstance(entry, float):  # an integer is a count
            totals[name] = entry


def headline_table(stored: StoredEvaluation, task: str) -> dict[str, Any]:
    """{columns, rows: [{variant, title, values, gains}]}; gains are against the generator alone."""
    found = {v: task_figures(stored, task, v)[0] for v in HEADLINE if stored.result[task].get(v)}
    columns = sorted(dict.fromkeys(name for figures in found.values() for name in figures), key=_place)
    base, rows = found.get("generator", {}), []
    for variant, figures in found.items():
        values = [figures.get(name) for name in columns]
        gains = [
            None if variant == "generator" else difference(value, base.get(name))
            for name, value in zip(columns, values, strict=True)
        ]
        rows.append({"variant": variant, "title": title_of(variant, stored), "values": values, "gains": gains})
    return {"columns": columns, "rows": rows}


def explained(tables: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence for every column of `headline_table`s that needs one."""
    columns = {name for table in tables for name in table["columns"]}
    return [text for name, text in MEANT.items() if name in columns]


def _place(name: str) -> tuple[int, int]:
    """Return a figure's sort key in a table: by its group, then by itself."""
    known = (f for f in sorted(ORDER, key=len, reverse=True) if name == f or name.startswith(f"{f} "))
    figure = next(known, name.partition(" ")[0])
    group = name.removeprefix(figure).strip()
    first, second = (all_.index(x) if x in all_ else len(all_) for x, all_ in ((group, GROUPS), (figure, ORDER)))
    return first, second


def sweep(stored: StoredEvaluation) -> dict[str, dict[str, Any]]:
    """Per figure that was swept: {task, alpha: [...], value: [...], upper_bound: of the mask's truth, or None}."""
    curves: dict[str, dict[str, Any]] = {}
    for task in tasks_of(stored):
        points = stored.result[task].get("sweep", [])
        upper_bound, _ = task_figures(stored, task, "upper_bound_mask")
        for key in [k for k in (points[0] if points else ()) if k != "alpha"]:
            name = WORDS.get(key, key)
            curves[name] = {
                "task": task,
                "alpha": [point["alpha"] for point in points],
                "value": [point[key] for point in points],
                "upper_bound": upper_bound.get(name, upper_bound.get(f"{name} coco")),
            }
    return curves


def class_measures(stored: StoredEvaluation) -> dict[str, dict[str, list[Any]]]:
    """Per-class figure → per variant its values in the order of the classes."""
    measures: dict[str, dict[str, list[Any]]] = {}
    for task in tasks_of(stored):
        for variant in HEADLINE:
            for name, values in task_figures(stored, task, variant)[1].items():
                measures.setdefault(name, {})[variant] = [values.get(c) for c in stored.classes]
    return measures


NO_MASK = "(no mask)"
"""Label of pixels in images without a mask: the last class of `confusions`."""


def confusions(stored: StoredEvaluation) -> dict[str, np.ndarray]:
    """(K + 1, K + 1) int64 pixels [truth, predicted] of each of `compared`, the last class being `NO_MASK`; empty where
    no semantic maps were measured.
    """
    entries, size = stored.rows.columns.get("semantic", {}), len(stored.classes) + 1
    if not len(entries.get("pixels", ())):
        return {}
    numbers, found = headline_variants(stored.evaluation), {}
    for name in stored.evaluation.compared:
        chosen = entries["variant"] == numbers[name]
        found[name] = np.zeros((size, size), np.int64)
        # IGNORE = −1 is the last one
        np.add.at(found[name], (entries["truth"][chosen], entries["predicted"][chosen]), entries["pixels"][chosen])
    return found


def most_confused(found: dict[str, np.ndarray], most: int = 24) -> np.ndarray:
    """Indices of the classes, ascending, that a matrix of limited size should show: of most misclassified pixels."""
    wrong = sum(m.sum(0) + m.sum(1) - 2 * np.diag(m) for m in found.values())
    seen = sum(m.sum(0) + m.sum(1) for m in found.values())
    order = np.lexsort((-seen, -wrong))
    return np.sort(order[seen[order] > 0][:most])


def folded(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(C + 1, C + 1): the chosen classes, all others together last."""
    place = np.full(len(counts), len(chosen))
    place[chosen] = np.arange(len(chosen))
    out = np.zeros((len(chosen) + 1,) * 2, np.int64)
    np.add.at(out, (place[:, None], place[None]), counts)
    return out


def changed_confusions(found: dict[str, np.ndarray], classes: tuple[str, ...], most: int = 12) -> list[dict[str, Any]]:
    """The pairs of classes whose confusion changed by most pixels, as shares of the true class's pixels; none where
    nothing was fused.

    Args:
        found: of `confusions`. classes: K names.
    """
    if len(found) < 2:
        return []
    classes = (*classes, NO_MASK)
    before, after = found["generator"], found["fused"]
    change = after - before
    np.fill_diagonal(change, 0)
    pairs = np.argsort(-np.abs(change), axis=None, kind="stable")[:most]
    total = before.sum(1)
    return [
        {
            "truth": classes[t],
            "predicted": classes[c],
            "before": float(before[t, c] / total[t]),
            "after": float(after[t, c] / total[t]),
            "pixels": int(change[t, c]),
        }
        for t, c in zip(*np.unravel_index(pairs, change.shape), strict=True)
        if change[t, c]
    ]


def class_pixels(rows: Rows, classes: int) -> np.ndarray:
    """(K,) ground-truth pixels of every class; without semantic maps, how many masks it has."""
    entries = rows.columns.get("semantic", {})
    if len(entries.get("pixels", ())):
        first = entries["variant"] == entries["variant"].min()
        return np.bincount(entries["truth"][first], entries["pixels"][first], minlength=classes).astype(np.int64)
    return np.bincount(rows.columns["masks"]["label"], minlength=classes)


def image_accuracies(stored: StoredEvaluation, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """(images,) share of labeled pixels that are classified correctly, nan without any; without semantic maps the
    share of the masks.

    Args:
        names: of variants whose rows are there; empty = `compared`.
    """
    numbers, found = headline_variants(stored.evaluation), {}
    count = len(stored.rows.images)
    for name in names or stored.evaluation.compared:
        entries = stored.rows.columns.get("semantic", {})
        if len(entries.get("pixels", ())):
            own = entries["variant"] == numbers[name]
            image, truth, predicted, pixels = (entries[key][own] for key in ("image", "truth", "predicted", "pixels"))
            right, of = (np.bincount(image, w, minlength=count) for w in (pixels * (truth == predicted), pixels))
        else:
            masks = stored.rows.columns["masks"]
            right = np.bincount(masks["image"], masks[name] == masks["label"], minlength=count)
            of = np.bincount(masks["image"], minlength=count)
        found[name] = np.divide(right, of, out=np.full(count, np.nan), where=of > 0)
    return found
