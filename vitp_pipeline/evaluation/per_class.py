"""`vitp evaluate --by-class`: figures per class of generator, fused result and upper bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitp_pipeline.config.choices import TASKS
from vitp_pipeline.evaluation.definition import UPPER_BOUND_TITLES
from vitp_pipeline.figure import difference, percent, signed
from vitp_pipeline.runtime.output import show

if TYPE_CHECKING:
    from vitp_pipeline.runtime.tables import Cell

COLUMNS = ("generator", "fused", "upper_bound_point", "upper_bound_mask")
ALONE = ("generator", "classifier")
"""Where nothing was fused the column of the one whose classes the masks have stands before the upper bounds."""
TITLES: dict[str, Cell] = {
    "generator": "generator",
    "classifier": "classifier",
    "fused": "fused",
    "gain": "gain",
    **UPPER_BOUND_TITLES,
}


def by_class(result: dict[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Figure → class → {generator, fused, gain, upper_bound_…}, in [−1, 1]; None where one does not exist. Where
    nothing was fused, {generator or classifier, upper_bound_…}.

    Args:
        result: of an evaluation. Classes that neither ground truth nor a prediction holds are left out.
    """
    found = {}
    for figure, per_class in _measured(result).items():
        rows = {}
        for name in next(iter(per_class.values())):
            values = {column: of[name] for column, of in per_class.items()}
            if all(value is None for value in values.values()):
                continue
            if "fused" in values:
                before, after = values["generator"], values["fused"]
                values = {"generator": before, "fused": after, "gain": difference(after, before)} | values
            rows[name] = values
        found[figure] = rows
    return found


def _measured(result: dict[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return figure → variant → class → value, of the measured tasks."""
    found, measured = {}, next(result[task] for task in TASKS if result.get(task))
    columns = COLUMNS if "fused" in measured else (*(name for name in ALONE if name in measured), *COLUMNS[2:])
    if semantic := result["semantic"]:
        found["IoU"] = {name: semantic[name]["IoU"] for name in columns}
    if panoptic := result["panoptic"]:
        found["PQ"] = {name: panoptic[name]["PQ"] for name in columns}
    if instance := result.get("instance"):
        measure = next(iter(instance[columns[0]]))
        found["AP"] = {name: instance[name][measure]["per_class"] for name in columns}
    return found


def print_by_class(result: dict[str, Any]) -> None:
    """A table a figure, on standard output, in the order of the classes."""
    from vitp_pipeline.runtime.tables import Table

    for figure, rows in by_class(result).items():
        if not rows:
            show(f"{figure}: neither ground truth nor predictions have a class")
            continue
        table = Table(title=f"{figure} of every class")
        table.column("class")
        keys = [key for key in TITLES if key in next(iter(rows.values()))]
        for key in keys:
            table.column(TITLES[key], justify="right", no_wrap=True)
        for name, values in rows.items():
            table.row(name, *(signed(values[key]) if key == "gain" else percent(values[key]) for key in keys))
        table.show()
