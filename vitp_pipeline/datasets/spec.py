"""A manifest: what a dataset is, without its files.

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
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.errors import InputError
from vitp_pipeline.paths import find_toml, read_toml

IGNORE = -1
"""Class index of a pixel without a label."""

UNKNOWN = -2
"""What `DatasetSpec.label_lut` gives for a label value that the manifest does not know."""

LABEL_KINDS = ("semantic-png", "coco-panoptic", "coco-instances")

VALUES = ("stored", "shown")
"""What `[labels] values` may say: label images hold labels as samples and indices, or as the gray levels they show."""

ORIENTATIONS = ("upright", "stored")
"""What `[labels] orientation` may say: labels lie on images as EXIF turns them, or as their files store them."""

LEFT_OUT = -1
"""Value of a polygon that is not drawn."""


@dataclass(frozen=True)
class ClassInfo:
    """One class. `label` is its value in the annotation: a pixel value, or a COCO category id. `aliases` are other
    names that annotation files and generators have for it.
    """

    name: str
    label: int
    thing: bool
    color: tuple[int, int, int]
    aliases: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """Whether a foreign name means this class. Blanks around names do not count."""
        return name.strip() in {self.name.strip(), *(alias.strip() for alias in self.aliases)}


@dataclass(frozen=True)
class SplitSpec:
    """Where a split lies, relative to the data root. Each entry may be several alternatives; the first that is there
    counts.

    Attributes:
        images: a pattern of image files (semantic-png), or their folder or names (COCO kinds).
        labels: the label file of an image, with the words in braces of `images` (semantic-png), or the PNG folder. None
            in a split without ground truth, which can be proposed for, classified and exported.
        annotations: the JSON file (COCO kinds).
        labels_coarse: coarse label files, named and valued as `labels` (semantic-png only).
        of: other splits, whose images together are this one's; the rest is then empty.
        list: a text file with an image id (or file name) a line: only these of the images are the split's.
    """

    images: str | tuple[str, ...]
    labels: str | tuple[str, ...] = ()
    annotations: str | tuple[str, ...] | None = None
    labels_coarse: str | tuple[str, ...] | None = None
    of: tuple[str, ...] = ()
    list: str | tuple[str, ...] | None = None


def alternatives(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """An entry of a split as a tuple."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed manifest. Class index k means `classes[k]` everywhere in vitp.

    Attributes:
        ignore: label values of pixels that count nowhere.
        roots: folders below the data root in which the dataset may lie; "" is the data root itself.
        polygons: for label files of polygons, the label value of every name that is no class; LEFT_OUT = not drawn.
        values, orientation: one of VALUES and ORIENTATIONS; "" = what each file shows by itself (`label_values`,
            `orientation`).
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

    def unlabeled(self, split: SplitSpec) -> str:
        """Why a split has no ground truth, as far as its entry says it; else ""."""
        return "" if split.labels or self.kind == "coco-instances" else "its manifest names no `labels`"

    @property
    def void_label(self) -> int:
        """The label value of a pixel without a class: 255 or else the first of `ignore`; without any, a value that no
        class has, 255 or else the lowest.
        """
        taken = {c.label for c in self.classes}
        free = 255 if 255 not in taken else next(v for v in range(len(taken) + 1) if v not in taken)
        return free if not self.ignore or free in self.ignore else self.ignore[0]

    def label_values(self, labels: np.ndarray) -> np.ndarray:
        """Class indices or IGNORE, of any shape → int64 label values, `void_label` for IGNORE."""
        return np.asarray(np.array([*(c.label for c in self.classes), self.void_label])[labels])

    def identity(self) -> dict[str, Any]:
        """What of the manifest can change results; colours, aliases and paths cannot."""
        identity = {
            "name": self.name,
            "kind": self.kind,
            "classes": [[c.name, c.label, c.thing] for c in self.classes],
            "ignore": list(self.ignore),
        }
        said = {"polygons": self.polygons, "values": self.values, "orientation": self.orientation}
        return identity | {key: value for key, value in said.items() if value}


def load_manifest(name_or_path: str | Path, beside: Path | None = None) -> DatasetSpec:
    """Reads and checks a manifest.

    Args:
        name_or_path: a shipped manifest's name, or the path of a TOML file.
        beside: a folder that a relative path may also start from (the recipe's).
    Raises:
        InputError: not found, not TOML, a key missing or unknown, a name or label twice.
    """
    path = find_toml(name_or_path, "manifests", beside)
    table = read_toml(path)
    try:
        return _parse(table)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: {reason}", "Compare with manifests/camvid.toml") from error


def _parse(table: dict[str, Any]) -> DatasetSpec:
    _known(table, {"name", "classes", "labels", "splits", "roots"}, "manifest")
    labels = table["labels"]
    _known(labels, {"kind", "ignore", "polygons", "values", "orientation"}, "[labels]")
    values, orientation = labels.get("values", ""), labels.get("orientation", "")
    for key, value, choices in (("values", values, VALUES), ("orientation", orientation, ORIENTATIONS)):
        if value and value not in choices:
            raise ValueError(f"labels.{key} is {value!r}, known are {', '.join(choices)}")
    kind = labels["kind"]
    if kind not in LABEL_KINDS:
        raise ValueError(f"labels.kind is {kind!r}, known are {', '.join(LABEL_KINDS)}")
    classes = []
    for index, entry in enumerate(table["classes"]):
        _known(entry, {"name", "label", "thing", "color", "aliases"}, f"class {index}")
        color = tuple(entry.get("color", default_color(index)))
        thing, aliases = bool(entry["thing"]), tuple(entry.get("aliases", ()))
        classes.append(ClassInfo(str(entry["name"]), int(entry["label"]), thing, color, aliases))
    if not classes:
        raise ValueError("it names no classes")
    ignore = tuple(int(v) for v in labels.get("ignore", ()))
    _distinct([c.name for c in classes], "class name")
    _distinct([*(c.label for c in classes), *ignore], "label value")
    largest = 65535 if kind == "semantic-png" else 2**31 - 1
    if odd := [v for v in (*(c.label for c in classes), *ignore) if not 0 <= v <= largest]:
        raise ValueError(f"the label value {odd[0]} is outside 0..{largest}")
    polygons = _polygons(labels.get("polygons", {}), classes, ignore)
    splits = {name: _split(name, split, kind) for name, split in table["splits"].items()}
    for name, split in splits.items():
        if missing := [part for part in split.of if part not in splits or splits[part].of]:
            raise ValueError(f"[splits.{name}] of: {missing[0]!r} is no split with files of its own")
    roots = tuple(_below_root(str(root).strip("/")) for root in table.get("roots", [""]))
    name = str(table["name"])
    return DatasetSpec(name, tuple(classes), kind, ignore, splits, roots, polygons, values, orientation)


def _split(name: str, entry: dict[str, Any], kind: str) -> SplitSpec:
    where = f"[splits.{name}]"
    _known(entry, {"images", "labels", "annotations", "labels_coarse", "of", "list"}, where)
    if "of" in entry:
        if len(entry) > 1:
            raise ValueError(f"{where} has `of` and nothing else, or no `of`")
        return SplitSpec((), of=tuple(entry["of"]))
    if kind != "semantic-png" and "annotations" not in entry:
        raise ValueError(f"{where} needs `annotations`, the {kind.removeprefix('coco-')} JSON")
    if kind != "semantic-png" and "labels_coarse" in entry:
        raise ValueError(f"{where} labels_coarse is for semantic-png")
    images = _paths(entry["images"])
    labels = _paths(entry.get("labels", ()))
    coarse = _paths(entry["labels_coarse"]) if "labels_coarse" in entry else None
    if kind == "semantic-png":
        words = set.intersection(*({*IMAGE_WORDS, *words_of(pattern)} for pattern in images))
        for key, templates in (("labels", labels), ("labels_coarse", coarse or ())):
            for template in templates:
                if unknown := sorted(set(words_of(template)) - words):
                    known = ", ".join(f"{{{word}}}" for word in (*IMAGE_WORDS, *sorted(words - {*IMAGE_WORDS})))
                    raise ValueError(f"{where} {key} knows {known}, not {unknown[0]!r}")
    annotations = _paths(entry["annotations"]) if "annotations" in entry else None
    return SplitSpec(images, labels, annotations, coarse, list=_paths(entry["list"]) if "list" in entry else None)


IMAGE_WORDS = ("stem", "dir", "name")
"""What every label path may name of its image: file name without ending, folder, file name."""


def words_of(pattern: str) -> list[str]:
    """The words in braces of a pattern or path."""
    return re.findall(r"\{(\w*)\}", pattern)


def _paths(entry: str | Sequence[str]) -> tuple[str, ...]:
    paths = alternatives(entry if isinstance(entry, str) else tuple(entry))
    if not all(isinstance(path, str) for path in paths):
        raise TypeError(f"{entry!r} is no path, nor a list of paths")
    return tuple(_below_root(path) for path in paths)


def _below_root(path: str) -> str:
    """Raises ValueError for a path out of the data root. A manifest is handed on, a link in the data root is not."""
    if path.startswith(("/", "~")) or ".." in path.split("/") or "\0" in path:
        raise ValueError(
            f"the path {path!r} leads out of the data root; put a link into it, or give a higher --data-root"
        )
    return path


def _polygons(table: dict[str, Any], classes: list[ClassInfo], ignore: tuple[int, ...]) -> dict[str, int]:
    values = {str(name): int(value) for name, value in table.items()}
    for name, value in values.items():
        if name in {c.name for c in classes}:
            raise ValueError(f"[labels.polygons] {name!r} is a class, whose value is its `label`")
        if value not in (LEFT_OUT, *ignore):
            raise ValueError(f"[labels.polygons] {name!r}: {value} is neither in `ignore` nor {LEFT_OUT} (not drawn)")
    return values


def _known(table: dict[str, Any], keys: set[str], where: str) -> None:
    if unknown := sorted(set(table) - keys):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(keys))}")


def _distinct(values: list[Any], what: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"the {what} {value!r} occurs twice")
        seen.add(value)


def default_color(index: int) -> tuple[int, int, int]:
    """Neighbouring classes get far-apart hues: steps of the golden angle, lightness in turn."""
    hue, lightness = (index * 0.61803398875) % 1.0, (0.45, 0.6, 0.35)[index % 3]
    r, g, b = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return round(255 * r), round(255 * g), round(255 * b)
