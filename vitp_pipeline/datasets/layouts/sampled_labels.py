"""Look at a sample of label images: are values or colors the classes, and which occur?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.label_files import COLOR, ColorsError, label_colors, open_exactly
from vitp_pipeline.datasets.label_values import LabelReader
from vitp_pipeline.datasets.layouts.class_names import NamedClasses
from vitp_pipeline.datasets.layouts.layout import Color, SeenClass
from vitp_pipeline.errors import InputError

LOOKED_AT = 64
"""Label images that are read, evenly spread over all."""
MANY = 256
"""More colors than that are a picture, no classes."""
VOID = 255
VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow dining_table dog horse motorbike person "
    "potted_plant sheep sofa train tv_monitor"
)
VOC_BORDER: Color = (224, 224, 192)


@dataclass(frozen=True)
class SampledLabels:
    """Kind of the labels and their classes, as a `Layout` has them."""

    kind: str
    classes: tuple[SeenClass, ...]
    ignore: tuple[int, ...] = ()
    ignore_colors: tuple[Color, ...] = ()
    guessed: bool = False
    remarks: tuple[str, ...] = ()


def spread(paths: Sequence[Path], count: int = LOOKED_AT) -> list[Path]:
    """Return up to `count` of the paths, evenly spread."""
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else list(paths)


def sample_labels(paths: Sequence[Path], named: NamedClasses | None = None) -> SampledLabels:
    """Read some label images of a dataset.

    Args:
        named: class names beside the dataset.
    Raises:
        InputError: none of them can be read as labels.
    """
    chosen = spread(paths)
    if named is not None and named.colors and _shows(chosen, named.colors):
        return _by_color(chosen, named)
    if any(open_image(path, "label image", decode=False).raw_mode in COLOR for path in chosen[:8]):
        try:
            return _by_value(chosen, named)
        except ColorsError:
            return _by_color(chosen, named)
    return _by_value(chosen, named)


def _shows(paths: Sequence[Path], colors: Sequence[Color]) -> bool:
    """True if nearly all pixels of some label images have one of these colors, and are not indices of gray."""
    known = {*colors, VOC_BORDER, (0, 0, 0), (255, 255, 255)}
    seen = _colors(paths[:8])
    return bool(seen) and set(seen) <= known and any(len(set(color)) > 1 for color in seen)


def _colors(paths: Sequence[Path]) -> dict[Color, int]:
    """Colors that occur, with their pixels, the most frequent first; nothing where files are no 8-bit colors."""
    found: dict[int, int] = {}
    for path in paths:
        try:
            pixels = label_colors(open_exactly(path, "label image"), "label image").astype(np.int64)
        except InputError:
            continue
        keys, counts = np.unique(pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2], return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            found[key] = found.get(key, 0) + count
    order = sorted(found, key=lambda key: (-found[key], key))
    return {(key >> 16, key >> 8 & 255, key & 255): found[key] for key in order}


def _by_color(paths: Sequence[Path], named: NamedClasses | None) -> SampledLabels:
    seen = _colors(paths)
    if len(seen) > MANY:
        raise InputError(
            f"{paths[0]}: {len(seen)} colors in {len(paths)} label images: these are pictures, no labels",
            "Give the folder whose label images have one value or color a class",
        )
    if named is not None and named.colors:
        classes = tuple(
            SeenClass(n, k, False, c) for k, (n, c) in enumerate(zip(named.names, named.colors, strict=True))
        )
        left = tuple(color for color in seen if color not in named.colors)
        remarks = (f"class names and colors are those of {named.file}",)
        return SampledLabels("color-png", classes, (), left, remarks=remarks)
    border = tuple(color for color in seen if color == VOC_BORDER)
    colors = sorted(color for color in seen if color not in border)
    names, guessed = _voc_names(colors), False
    if not names:
        names, guessed = [f"class_{k}" for k in range(len(colors))], True
        if named is not None and len(named.names) == len(colors):
            names = list(named.names)
    classes = tuple(SeenClass(name, k, False, color) for k, (name, color) in enumerate(zip(names, colors, strict=True)))
    remark = f"the colors are those of {len(paths)} label images; add any that are missing"
    return SampledLabels("color-png", classes, (), border, guessed, (remark,))


def voc_color(index: int) -> Color:
    """Color of an index in PASCAL VOC's palette: bits 0, 1, 2 of it, highest first, are those of red, green, blue."""
    rgb = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= (index >> channel & 1) << (7 - bit)
        index >>= 3
    return rgb[0], rgb[1], rgb[2]


def _voc_names(colors: Sequence[Color]) -> list[str]:
    """Names of VOC's classes for colors of its palette; nothing where there are others."""
    known = {voc_color(k): name for k, name in enumerate(VOC_NAMES.split())}
    return [known[color] for color in colors] if set(colors) <= known.keys() and (0, 0, 0) in colors else []


def _by_value(paths: Sequence[Path], named: NamedClasses | None) -> SampledLabels:
    reader, values, trouble = LabelReader(lambda: paths), set[int](), list[InputError]()
    for path in paths:
        try:
            values |= set(np.unique(reader.read(path)).tolist())
        except ColorsError:
            raise
        except InputError as error:
            trouble.append(error)
    if not values:
        raise trouble[0]
    ignore = (VOID,) if VOID in values or not named or len(named.names) <= VOID else ()
    used = sorted(values - {*ignore})
    count = max(used, default=0) + 1
    remarks = [f"label values {_ranges(used)} occur in {len(paths)} label images that were read"]
    if named is not None and len(named.names) >= count:
        remarks.append(f"class names are those of {named.file}, in its order")
        names, guessed = list(named.names), False
    elif named is not None and len(named.names) == count - 1 and 0 in used:
        remarks.append(f"class names are those of {named.file}, from value 1; 0 is taken for unlabeled")
        classes = tuple(SeenClass(name, k) for k, name in enumerate(named.names, 1))
        return SampledLabels("semantic-png", classes, (0, *ignore), remarks=tuple(remarks))
    else:
        if count <= 2 * len(used):  # values between those of the sample may occur elsewhere
            used = list(range(count))
        names, guessed = [f"class_{value}" for value in used], True
        classes = tuple(SeenClass(name, value) for name, value in zip(names, used, strict=True))
        return SampledLabels("semantic-png", classes, ignore, (), True, tuple(remarks))
    classes = tuple(SeenClass(name, k) for k, name in enumerate(names))
    return SampledLabels("semantic-png", classes, ignore, (), guessed, tuple(remarks))


def _ranges(values: Sequence[int]) -> str:
    """Write numbers briefly: "0–10, 255"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts) or "none"
