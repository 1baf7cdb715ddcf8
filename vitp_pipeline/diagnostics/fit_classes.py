"""Bring the classes of a dataset and of a generator together: `vitp init` writes a manifest that both agree with.

Names decide where the dataset has names. Where it has none, the generator segments a few labeled images, and the label
value (or color) that lies under a class most often is taken for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.datasets import Dataset, DatasetSpec
from vitp_pipeline.datasets.layouts.layout import Color, Layout, SeenClass
from vitp_pipeline.datasets.layouts.manifest_text import manifest_text
from vitp_pipeline.datasets.manifest import load_manifest, parse_manifest
from vitp_pipeline.datasets.spec import default_color
from vitp_pipeline.errors import UserError
from vitp_pipeline.runtime.progress import progress
from vitp_pipeline.shipped import parse_toml, shipped

if TYPE_CHECKING:
    from vitp_pipeline.generators.base import Generator

LOOKED_AT = 6
"""Labeled images that the generator segments."""
AGREED = 0.5
"""Least share of the labeled pixels on which labels and generator must agree."""


@dataclass(frozen=True)
class Fitted:
    """A layout whose classes are the generator's, in its order; or as it was, with a remark on the difference."""

    layout: Layout
    fits: bool


def fit_classes(layout: Layout, generator: Generator, root: Path) -> Fitted:
    """Give a layout the classes of a generator.

    Args:
        root: the dataset's folder.
    """
    names = generator.classes
    if layout.shipped or names is None:
        return Fitted(layout, names is None)
    if not layout.classes:
        return Fitted(replace(layout, classes=_known(names), guessed=False), True)
    if layout.guessed:
        return _fit_by_pixels(layout, generator, root)
    own = {_plain(info.name): info for info in layout.classes}
    if set(own) <= set(map(_plain, names)):
        classes = _in_order(names, own, layout.ignore)
        lacking = [name for name in names if _plain(name) not in own]
        remark = f"classes of the generator that the data lack: {_some(lacking)}" if lacking else ""
        return Fitted(replace(layout, classes=classes, remarks=_with(layout, remark)), True)
    others = [info.name for info in layout.classes if _plain(info.name) not in set(map(_plain, names))]
    remark = f"the generator does not know {_some(others)}: its classes are {_some(names)}"
    return Fitted(replace(layout, remarks=_with(layout, remark)), False)


def _in_order(names: Sequence[str], own: dict[str, SeenClass], ignore: Sequence[int]) -> tuple[SeenClass, ...]:
    """The dataset's classes in the generator's order; those that it lacks get values that no class has."""
    taken, classes = {255, *ignore, *(info.label for info in own.values())}, list[SeenClass]()
    known = {_plain(info.name): info for info in _known(names)}
    free = iter(value for value in range(2**16) if value not in taken)
    for name in names:
        info = own.get(_plain(name)) or replace(known[_plain(name)], label=next(free))
        aliases = () if info.name.strip() == name.strip() else (name,)
        classes.append(replace(info, aliases=aliases))
    return tuple(classes)


def _known(names: Sequence[str]) -> tuple[SeenClass, ...]:
    """Classes of these names, labels from 0; things and colors are those of a shipped manifest that has them all."""
    for file in sorted(shipped("manifests").glob("*.toml")):
        infos = {_plain(info.name): info for info in load_manifest(file).classes}
        if set(map(_plain, names)) == set(infos):
            found = (infos[_plain(name)] for name in names)
            return tuple(
                SeenClass(name, k, info.thing, info.color)
                for k, (name, info) in enumerate(zip(names, found, strict=True))
            )
    return tuple(SeenClass(name, k) for k, name in enumerate(names))


def _fit_by_pixels(layout: Layout, generator: Generator, root: Path) -> Fitted:
    """Name values or colors by what the generator sees there."""
    names = generator.classes
    assert names is not None
    try:
        counts, images = _joint_counts(layout, generator, root)
    except UserError as error:
        return _unfitted(layout, f"the generator could not be compared with the labels ({error.message})")
    total = counts.sum()
    found = _by_order(layout, counts) if layout.kind == "semantic-png" else _by_assignment(counts)
    agreed = sum(counts[place, k] for place, k in found.items()) / max(1, total)
    if agreed < AGREED:
        return _unfitted(layout, f"its classes are {_some(names)}, and none of the label values agree with them")
    by_class = {k: layout.classes[place] for place, k in found.items()}
    if layout.kind == "semantic-png":
        place, k = next(iter(found.items()))
        first = layout.classes[place].label - k
        classes = tuple(replace(info, label=number + first) for number, info in enumerate(_known(names)))
    else:
        classes = tuple(
            replace(info, color=by_class[k].color) if k in by_class else info for k, info in enumerate(_known(names))
        )
    if layout.kind == "color-png":  # every class needs a color of its own
        classes = _distinct_colors(classes, {info.color for info in layout.classes})
    left = [info for place, info in enumerate(layout.classes) if place not in found]
    remark = f"the classes are the generator's; it agrees with {100 * agreed:.0f} % of the labels of {images} images"
    if left:
        words = [
            str(list(info.color)) if layout.kind == "color-png" and info.color else str(info.label) for info in left
        ]
        remark += f"; taken for unlabeled: {', '.join(words)}"
    ignored = tuple(sorted({*layout.ignore, *(info.label for info in left)})) if layout.kind == "semantic-png" else ()
    colors = tuple(info.color for info in left if info.color) if layout.kind == "color-png" else ()
    return Fitted(
        replace(
            layout,
            classes=classes,
            ignore=ignored,
            ignore_colors=(*layout.ignore_colors, *colors),
            guessed=False,
            remarks=_with(layout, remark),
        ),
        True,
    )


def _unfitted(layout: Layout, why: str) -> Fitted:
    remark = f"the names of the classes are to be filled in, in the order of the generator's: {why}"
    return Fitted(replace(layout, remarks=_with(layout, remark)), False)


def _joint_counts(layout: Layout, generator: Generator, root: Path) -> tuple[np.ndarray, int]:
    """(classes of the layout, classes of the generator) int64 pixels of some labeled images, and the images' number."""
    from vitp_pipeline.config.settings import EvaluateSettings
    from vitp_pipeline.inference.predictor import Predictor

    spec = spec_of(layout)
    split = "val" if "val" in layout.splits else next(iter(layout.splits))
    dataset = Dataset(spec, root, split)
    predictor = Predictor(generator, None, None, evaluate=EvaluateSettings(alpha=0.0))
    counts = np.zeros((len(layout.classes), len(generator.classes or ())), np.int64)
    numbers = {round(i * (len(dataset) - 1) / max(1, LOOKED_AT - 1)) for i in range(LOOKED_AT)}
    with progress("comparing labels with the generator", len(numbers)) as bar:
        for number in sorted(numbers):
            sample = dataset.samples[number]
            truth = dataset.read_semantic(sample)
            labels = predictor.segment(dataset.read_image(sample), ("semantic",)).labels
            if labels is not None and labels.shape == truth.shape:
                seen = (truth >= 0) & (labels >= 0)
                np.add.at(counts, (truth[seen].astype(int), labels[seen].astype(int)), 1)
            bar.advance()
    return counts, len(numbers)


def spec_of(layout: Layout) -> DatasetSpec:
    """Parse a layout as the manifest that is written of it."""
    return parse_manifest(parse_toml(manifest_text("images", layout)), "vitp init:")


def _by_order(layout: Layout, counts: np.ndarray) -> dict[int, int]:
    """Class of the generator by number of the layout's class: values in the generator's order, from 0 or from 1,
    whichever agrees with more pixels.
    """
    readings = []
    for first in (0, 1):
        places = {n: info.label - first for n, info in enumerate(layout.classes)}
        readings.append({n: k for n, k in places.items() if 0 <= k < counts.shape[1]})
    return max(readings, key=lambda found: sum(counts[n, k] for n, k in found.items()))


def _by_assignment(counts: np.ndarray) -> dict[int, int]:
    """Class of the generator by number of the color: the assignment of most pixels, without those that share none."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-counts)
    return {int(n): int(k) for n, k in zip(rows, columns, strict=True) if counts[n, k]}


def _distinct_colors(classes: Sequence[SeenClass], own: set[Color | None]) -> tuple[SeenClass, ...]:
    """Give a class whose color another one has, or that has none, a color that nothing has."""
    made, used = [], set[Color]()
    others = filter(lambda color: color not in own, map(default_color, range(10**6)))
    for info in classes:
        color = info.color
        while color is None or color in used:
            color = next(others)
        used.add(color)
        made.append(replace(info, color=color))
    return tuple(made)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _with(layout: Layout, remark: str) -> tuple[str, ...]:
    return (*layout.remarks, remark) if remark else layout.remarks


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
