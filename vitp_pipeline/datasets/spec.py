"""A manifest: what a dataset is, without its files.

One TOML file names the classes (in order), which are things, how label values map to them, and where the images and
labels of every split lie below the data root. Label values are mapped explicitly; no switch shifts them.
"""

from __future__ import annotations

import colorsys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import InputError
from vitp_pipeline.paths import find_toml

IGNORE = -1
"""Class index of a pixel without a label."""

LABEL_KINDS = ("semantic-png", "coco-panoptic")


@dataclass(frozen=True)
class ClassInfo:
    """One class. `label` is its value in the annotation: a pixel value, or a COCO category id."""

    name: str
    label: int
    thing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class SplitSpec:
    """Where a split lies, relative to the data root.

    Attributes:
        images: a glob pattern of image files (semantic-png), or their folder (coco-panoptic).
        labels: the label file of an image, with `{stem}` and `{dir}` of its path (semantic-png), or the PNG folder.
        annotations: the panoptic JSON (coco-panoptic only).
        labels_coarse: coarse label files, named and valued as `labels` (semantic-png only).
    """

    images: str
    labels: str
    annotations: str | None = None
    labels_coarse: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed manifest. Class index k means `classes[k]` everywhere in vitp."""

    name: str
    classes: tuple[ClassInfo, ...]
    kind: str
    ignore: tuple[int, ...]
    splits: dict[str, SplitSpec]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def things(self) -> tuple[bool, ...]:
        return tuple(c.thing for c in self.classes)

    def identity(self) -> dict[str, Any]:
        """What of the manifest can change results; colours and split paths cannot."""
        return {
            "name": self.name,
            "kind": self.kind,
            "classes": [[c.name, c.label, c.thing] for c in self.classes],
            "ignore": list(self.ignore),
        }


def load_manifest(name_or_path: str | Path, beside: Path | None = None) -> DatasetSpec:
    """Reads and checks a manifest.

    Args:
        name_or_path: a shipped manifest's name, or the path of a TOML file.
        beside: a folder that a relative path may also start from (the recipe's).
    Raises:
        InputError: not found, not TOML, a key missing or unknown, a name or label twice.
    """
    path = find_toml(name_or_path, "manifests", beside)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file ({error})") from error
    try:
        return _parse(table)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: {reason}", "Compare with manifests/camvid.toml") from error


def _parse(table: dict[str, Any]) -> DatasetSpec:
    _known(table, {"name", "classes", "labels", "splits"}, "manifest")
    labels = table["labels"]
    _known(labels, {"kind", "ignore"}, "[labels]")
    if labels["kind"] not in LABEL_KINDS:
        raise ValueError(f"labels.kind is {labels['kind']!r}, known are {', '.join(LABEL_KINDS)}")
    classes = []
    for index, entry in enumerate(table["classes"]):
        _known(entry, {"name", "label", "thing", "color"}, f"class {index}")
        color = tuple(entry.get("color", _color(index)))
        classes.append(ClassInfo(str(entry["name"]), int(entry["label"]), bool(entry["thing"]), color))
    if not classes:
        raise ValueError("it names no classes")
    ignore = tuple(int(v) for v in labels.get("ignore", ()))
    _distinct([c.name for c in classes], "class name")
    _distinct([*(c.label for c in classes), *ignore], "label value")
    largest = 65535 if labels["kind"] == "semantic-png" else 2**31 - 1
    if odd := [v for v in (*(c.label for c in classes), *ignore) if not 0 <= v <= largest]:
        raise ValueError(f"the label value {odd[0]} is outside 0..{largest}")
    splits = {}
    for name, split in table["splits"].items():
        _known(split, {"images", "labels", "annotations", "labels_coarse"}, f"[splits.{name}]")
        if labels["kind"] == "coco-panoptic" and "annotations" not in split:
            raise ValueError(f"[splits.{name}] needs `annotations`, the panoptic JSON")
        if labels["kind"] == "coco-panoptic" and "labels_coarse" in split:
            raise ValueError(f"[splits.{name}] labels_coarse is for semantic-png")
        if labels["kind"] == "semantic-png":
            for key in ("labels", "labels_coarse"):
                try:
                    split.get(key, "").format(stem="", dir="", name="")
                except (KeyError, IndexError, ValueError) as error:
                    raise ValueError(
                        f"[splits.{name}] {key} knows {{stem}}, {{dir}} and {{name}}, not {error}"
                    ) from error
        splits[name] = SplitSpec(split["images"], split["labels"], split.get("annotations"), split.get("labels_coarse"))
    return DatasetSpec(str(table["name"]), tuple(classes), labels["kind"], ignore, splits)


def _known(table: dict[str, Any], keys: set[str], where: str) -> None:
    if unknown := sorted(set(table) - keys):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(keys))}")


def _distinct(values: list[Any], what: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"the {what} {value!r} occurs twice")
        seen.add(value)


def _color(index: int) -> tuple[int, int, int]:
    """Neighbouring classes get far-apart hues: steps of the golden angle, lightness in turn."""
    hue, lightness = (index * 0.61803398875) % 1.0, (0.45, 0.6, 0.35)[index % 3]
    r, g, b = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return round(255 * r), round(255 * g), round(255 * b)
