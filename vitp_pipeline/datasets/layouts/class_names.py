"""Class names, and their colors, that lie as a text file beside a dataset."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

from vitp_pipeline.datasets.layouts.folder import Folder
from vitp_pipeline.datasets.layouts.layout import Color

FILES = ("classes.txt", "labelmap.txt", "class_names.txt", "labels.txt", "label_colors.txt", "class_dict.csv")
LONGEST = 2**20
"""Bytes of such a file."""


@dataclass(frozen=True)
class NamedClasses:
    """Names in order, and the color of each where the file has them.

    Attributes:
        file: its name, for remarks.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()
    file: str = ""


def class_names(folder: Folder) -> NamedClasses | None:
    """Read the first of `FILES` that the folder has and that names classes; None without one.

    Lines are `name`, `0: name`, `name:r,g,b::` (labelmap.txt of CVAT), `r g b name` (label_colors.txt) or
    `name,r,g,b` (class_dict.csv).
    """
    for name in FILES:
        path = folder.named(name)
        if path is None or path.stat().st_size > LONGEST:
            continue
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        entries = [entry for line in text.splitlines() if (entry := _entry(line)) is not None]
        names = tuple(entry[0] for entry in entries)
        if not names or len(set(names)) < len(names):
            continue
        colors = tuple(entry[1] for entry in entries if entry[1] is not None)
        return NamedClasses(names, colors if len(colors) == len(names) else (), path.name)
    return None


_NUMBER = r"\s*(\d{1,3})\s*"
_FORMS = (
    re.compile(rf"(?P<name>[^:,#]+):{_NUMBER},{_NUMBER},{_NUMBER}(:.*)?"),
    re.compile(rf"{_NUMBER}[ ,\t]{_NUMBER}[ ,\t]{_NUMBER}[ ,\t]+(?P<name>.+)"),
    re.compile(rf"(?P<name>[^,#]+),{_NUMBER},{_NUMBER},{_NUMBER}"),
)


def _entry(line: str) -> tuple[str, Color | None] | None:
    """Return the name of a line and its color; None of a line that names no class."""
    line = line.strip()
    if not line or line.startswith("#") or line.lower().replace(" ", "").startswith("name,r,g,b"):
        return None
    for form in _FORMS:
        if found := form.fullmatch(line):
            values = [int(v) for v in found.groups() if v is not None and v.isdigit()][:3]
            if max(values) > 255:
                return None
            return found["name"].strip(), (values[0], values[1], values[2])
    name = re.sub(r"^\d+\s*[:=\t]\s*", "", next(csv.reader([line]), [line])[0]).strip()
    return (name, None) if name else None
