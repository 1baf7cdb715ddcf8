"""A folder's layout as a detector saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Color = tuple[int, int, int]


@dataclass(frozen=True)
class SeenClass:
    """One class: its name, its label value, whether it is a thing, its color (0..255) where the data have one, and
    other names for it.
    """

    name: str
    label: int
    thing: bool = False
    color: Color | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Content of the manifest of a folder.

    Attributes:
        title: the layout in words.
        kind: of the labels, one of `LABEL_KINDS`.
        splits: entries of [splits.NAME] by name, in the words of a manifest; `train` and `val` as a rule.
        classes: in order; empty where no file tells any.
        ignore: label values of unlabeled pixels. ignore_colors: the same for kinds by color.
        shipped: name of the shipped manifest that describes the folder; then all else is not needed.
        guessed: class names are made up (`class_0`).
        remarks: what a person should know or check, a sentence each.
        images: some images of the folder, for their size.
    """

    title: str
    kind: str = "semantic-png"
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: tuple[SeenClass, ...] = ()
    ignore: tuple[int, ...] = ()
    ignore_colors: tuple[Color, ...] = ()
    shipped: str = ""
    guessed: bool = False
    remarks: tuple[str, ...] = ()
    images: Sequence[Path] = ()

    @property
    def labeled(self) -> bool:
        """True if some split has ground truth."""
        return bool(self.shipped) or any({"labels", "annotations"} & entry.keys() for entry in self.splits.values())
