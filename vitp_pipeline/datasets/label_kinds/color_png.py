"""Label images whose colors are the classes, as VOC and many small datasets store them; images by their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.label_files import form_of, label_colors, open_exactly
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, Finding, LabelKind, Sample, Split
from vitp_pipeline.datasets.label_kinds.truth import ClassMap
from vitp_pipeline.datasets.spec import IGNORE, UNKNOWN, DatasetSpec
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size

SHOWN = 4
"""Unknown colors that a message names."""


def class_map(colors: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Look up (H, W, 3) uint8 RGB in the manifest's colors: (H, W) int16 class indices, IGNORE or UNKNOWN."""
    known = np.array([*(info.color for info in spec.classes), *spec.ignore_colors], np.int64).reshape(-1, 3)
    classes = np.array([*range(len(spec.classes)), *(IGNORE for _ in spec.ignore_colors)], np.int16)
    keys = packed(known)
    order = np.argsort(keys)
    wanted = packed(colors)
    place = order[np.searchsorted(keys[order], wanted).clip(max=len(keys) - 1)]
    return np.asarray(np.where(keys[place] == wanted, classes[place], np.int16(UNKNOWN)))


def packed(colors: np.ndarray) -> np.ndarray:
    """Encode (…, 3) colors 0..255 as (…) int32, R · 65536 + G · 256 + B."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue)


def _read(dataset: Split, sample: Sample, coarse: bool) -> ClassMap:
    path = sample.coarse if coarse and sample.coarse else sample.label
    colors = label_colors(open_exactly(path, "label image"), "label image", dataset.spec.orientation != "stored")
    labels = class_map(colors, dataset.spec)
    if (odd := labels == UNKNOWN).any():
        raise InputError(_unknown(path, colors[odd], dataset.spec))
    return ClassMap(labels)


def _extent(dataset: Split, sample: Sample) -> tuple[Size, str]:
    label = open_image(sample.label, "label image")
    return label.upright_size, "upright" if label.orientation else ""


def _look(dataset: Split, sample: Sample, found: Finding) -> None:
    upright, spec = dataset.spec.orientation != "stored", dataset.spec
    for path in dict.fromkeys(path for path in (sample.label, sample.coarse) if path is not None):
        image = open_exactly(path, "label image")
        colors = label_colors(image, "label image", upright)
        labels = class_map(colors, spec)
        found.require_size(path, (labels.shape[0], labels.shape[1]))
        if (odd := labels == UNKNOWN).any():
            found.broken.append((path, _unknown(path, colors[odd], spec)))
        if path == sample.label:
            found.label_mode, found.label_orientation = form_of(image), image.orientation or 1
            classes, counts = np.unique(labels[labels >= 0], return_counts=True)
            values = spec.label_values(classes)
            found.values.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            found.void = int((labels == IGNORE).sum())


def _unknown(path: Path, colors: np.ndarray, spec: DatasetSpec) -> str:
    """Make the message about (N, 3) pixels of unknown colors, remedy included: failed images keep no hint."""
    keys, counts = np.unique(packed(colors), return_counts=True)
    common = np.argsort(-counts, kind="stable")[:SHOWN]
    shown = [_rgb(int(keys[n])) for n in common.tolist()]
    more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
    first = int(keys[common[0]])
    return (
        f"{path}: colors that manifest {spec.name!r} does not know: {', '.join(shown)}{more} (nearest to the first: "
        f"{_nearest(first, spec)}); set them as `color` of classes, or add them to `ignore_colors` under [labels]"
    )


def _rgb(key: int) -> str:
    return str([key >> 16, key >> 8 & 255, key & 255])


def _nearest(key: int, spec: DatasetSpec) -> str:
    def distance(color: Iterable[int]) -> int:
        return sum((a - b) ** 2 for a, b in zip(color, (key >> 16, key >> 8 & 255, key & 255), strict=True))

    info = min(spec.classes, key=lambda info: distance(info.color))
    return f"{list(info.color)} of {info.name!r}"


LABEL_KINDS.add("color-png", LabelKind(_read, _look, _extent, by_color=True))
