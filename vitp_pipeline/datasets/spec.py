"""A manifest: the description of a dataset, without its files.

One TOML file names the classes (in order), which are things, how label values map to them, and where the images and
labels of every split lie below the data root, in folders or archives. Label values are mapped explicitly; no
switch shifts them.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from annotated_types import Len

from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.validation.constraints import Check, OneOrMore, within
from vitp_pipeline.validation.keys import Key
from vitp_pipeline.validation.tables import table

IGNORE = -1
"""Class index of a pixel without a label."""

UNKNOWN = -2
"""What `DatasetSpec.label_lut` gives for a label value that the manifest does not know."""

LEFT_OUT = -1
"""Value of a polygon that is not drawn."""


LabelValue = Annotated[int, within(0, 2**31 - 1)]
Byte = Annotated[int, within(0, 255)]
Color = tuple[Byte, Byte, Byte]
InRoot = Annotated[
    str,
    Check(
        lambda path: not (path.startswith(("/", "~")) or ".." in path.split("/") or "\0" in path),
        "leads out of the data root: put a link into it, or give a higher --data-root",
    ),
]
"""A path below the data root. A manifest is handed on, a link in the data root is not."""
Step = Annotated[int, within(0, 10**6)]
Paths = Annotated[tuple[InRoot, ...], OneOrMore()]
"""Alternatives: the first that is there counts."""


@table
class ClassInfo:
    """One class."""

    name: Annotated[str, Len(1), Key("Name of the class.")]
    label: Annotated[
        LabelValue,
        Key("Value in the annotation: a pixel value, or a COCO category id; color-png needs none.", "label"),
    ]
    thing: Annotated[bool, Key("True for a thing, whose instances count; false for stuff.")]
    color: Annotated[
        Color, Key("Red, green, blue in pictures, and in the labels of color-png; default: by class index.", "RGB")
    ]
    aliases: Annotated[tuple[str, ...], Key("Other names that annotation files and generators have for it.")] = ()

    def is_called(self, name: str) -> bool:
        """True if a foreign class name means this class. Blanks around names do not count."""
        return name.strip() in {self.name.strip(), *(alias.strip() for alias in self.aliases)}


@table
class SplitSpec:
    """Location of a split below the data root. One without labels can be proposed for, classified and exported."""

    images: Annotated[Paths, Key("Image files: a pattern (semantic-png), or their folder or names (COCO kinds).")] = ()
    labels: Annotated[Paths, Key("Label file, with the words in braces of `images`; or the folder of PNGs.")] = ()
    annotations: Annotated[Paths, Key("JSON file of the COCO kinds.")] = ()
    labels_coarse: Annotated[Paths, Key("Coarse label files, named and valued as `labels` (semantic-png).")] = ()
    of: Annotated[tuple[str, ...], Key("Other splits, whose images together are this one's.")] = ()
    list: Annotated[Paths, Key("Text file with an image id or file name a line: only these images belong.")] = ()
    exclude: Annotated[Paths, Key("Text file written as `list`: all images but these belong.")] = ()
    every: Annotated[
        Step, Key("Only every n-th of these images belongs, the first one included; 0 = all.", "images")
    ] = 0
    exclude_every: Annotated[Step, Key("All of these images but every n-th belong; 0 = all.", "images")] = 0


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed manifest. Class index k means `classes[k]` everywhere in vitp.

    Attributes:
        ignore: label values of unlabeled pixels.
        roots: folders below the data root in which the dataset may lie; "" is the data root itself.
        polygons: for label files of polygons, the label value of every name that is no class; LEFT_OUT = not drawn.
        values, orientation: see `manifest.LabelSpec`.
        prepare: dataset of `vitp prepare` that makes its annotation files; "" = none.
        by_color: the classes' colors say which pixels are theirs. ignore_colors: those of unlabeled pixels.
    """

    name: str
    classes: tuple[ClassInfo, ...]
    kind: str
    ignore: tuple[int, ...]
    splits: dict[str, SplitSpec]
    roots: tuple[str, ...] = ("",)
    polygons: dict[str, int] = field(default_factory=dict)
    values: str = ""
    orientation: str = ""
    prepare: str = ""
    by_color: bool = False
    ignore_colors: tuple[Color, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def things(self) -> tuple[bool, ...]:
        return tuple(c.thing for c in self.classes)

    @cached_property
    def label_lut(self) -> np.ndarray:
        """int16 class index, IGNORE or UNKNOWN by label value, up to the largest value that is known."""
        lut = np.full(max([c.label for c in self.classes] + list(self.ignore)) + 1, UNKNOWN, np.int16)
        lut[list(self.ignore)] = IGNORE
        lut[[c.label for c in self.classes]] = np.arange(len(self.classes))
        return lut

    @property
    def void_label(self) -> int:
        """Return the label value of an unlabeled pixel: 255, else the first of `ignore`; without any, a value that no
        class has, 255 or else the lowest.
        """
        taken = {c.label for c in self.classes}
        free = 255 if 255 not in taken else next(v for v in range(len(taken) + 1) if v not in taken)
        return free if not self.ignore or free in self.ignore else self.ignore[0]

    def label_values(self, labels: np.ndarray) -> np.ndarray:
        """Map class indices or IGNORE, of any shape, to int64 label values; IGNORE becomes `void_label`."""
        return np.asarray(np.array([*(c.label for c in self.classes), self.void_label])[labels])

    def identity(self) -> dict[str, Any]:
        """Return the part of the manifest that can change results; aliases and paths cannot, colors only where labels
        are colors.
        """
        identity = {
            "name": self.name,
            "kind": self.kind,
            "classes": [[c.name, c.label, c.thing] for c in self.classes],
            "ignore": list(self.ignore),
        }
        said = {"polygons": self.polygons, "values": self.values, "orientation": self.orientation}
        colors = {"colors": [list(c.color) for c in self.classes], "ignore_colors": list(map(list, self.ignore_colors))}
        return identity | {key: value for key, value in said.items() if value} | (colors if self.by_color else {})


IMAGE_WORDS = ("stem", "dir", "name")
"""What every label path may name of its image: file name without ending, folder, file name."""


def words_of(pattern: str) -> list[str]:
    """List the words in braces of a pattern or path."""
    return re.findall(r"\{(\w*)\}", pattern)


def default_color(index: int) -> tuple[int, int, int]:
    """Choose a class color: hues step by the golden angle, lightness alternates, so that neighbors differ."""
    hue, lightness = (index * 0.61803398875) % 1.0, (0.45, 0.6, 0.35)[index % 3]
    r, g, b = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return round(255 * r), round(255 * g), round(255 * b)


def check_classes(classes: Sequence[str], whose: str, manifest: DatasetSpec, model: str = "") -> None:
    """Raise IncompatibleError when a model's classes are not the manifest's, in the manifest's order. A class may have
    its name or one of its aliases.

    Args:
        model: "classifier" if the classes come from it because no manifest was given.
    """
    other, briefly = (f"the {model}",) * 2 if model else (f"manifest {manifest.name!r}", "the manifest")
    ours, theirs = manifest.classes, tuple(classes)
    if len(ours) != len(theirs):
        what = f"{len(theirs)} classes, {briefly} {len(ours)}"
    else:
        different = [k for k, (info, name) in enumerate(zip(ours, theirs, strict=True)) if not info.is_called(name)]
        if not different:
            return
        k = different[0]
        what = f"class {k} is {theirs[k]!r}, in {briefly} {ours[k].name!r}"
    hint = "Use the manifest whose classes, in this order, the model was trained with"
    if model:
        hint = "Use two models that were trained with the same classes, in the same order"
    raise IncompatibleError(f"{whose} and {other} do not agree: {what}", hint)
