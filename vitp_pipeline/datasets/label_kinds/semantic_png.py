"""Label images whose pixels are label values, or files of polygons in their place; images by their names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, Finding, LabelKind, Sample, Split
from vitp_pipeline.datasets.label_kinds.truth import ClassMap
from vitp_pipeline.datasets.label_values import LabelReader
from vitp_pipeline.datasets.polygons import read_polygons
from vitp_pipeline.datasets.spec import UNKNOWN
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size

UNKNOWN_VALUES = "label values that the manifest does not know"
POLYGONS = ".json"


def read_values(dataset: Split, sample: Sample, coarse: bool = False) -> np.ndarray:
    """(H, W) int32 label values as the label file has them, known or not.

    Args:
        coarse: read the coarse label file instead, where the sample has one.
    Raises:
        InputError: missing or broken, or it can be read in more than one way (`label_values`).
    """
    path, reader = sample.label, dataset.labels
    if coarse and sample.coarse:
        path, reader = sample.coarse, dataset.coarse_labels
    return read_polygons(path, dataset.spec) if path.suffix == POLYGONS else reader.read(path)


def _read(dataset: Split, sample: Sample, coarse: bool) -> ClassMap:
    values, lut = read_values(dataset, sample, coarse), dataset.spec.label_lut
    classes = None
    if not values.size or (values.min() >= 0 and values.max() < len(lut)):
        classes = lut.take(values)
    if classes is None or (classes == UNKNOWN).any():
        known = np.flatnonzero(lut != UNKNOWN)
        odd = int(values[~np.isin(values, known)][0])
        path = sample.coarse if coarse and sample.coarse else sample.label
        raise InputError(
            f"{path}: the label value {odd} is neither a class nor ignored in manifest {dataset.spec.name!r}",
            "Add it to `classes` or to `labels.ignore`",
        )
    return ClassMap(classes)


def _extent(dataset: Split, sample: Sample) -> tuple[Size, str]:
    if sample.label.suffix == POLYGONS:
        height, width = read_polygons(sample.label, dataset.spec).shape
        return (height, width), ""
    label = open_image(sample.label, "label image")
    return label.upright_size, "upright" if label.orientation else ""


def _look(dataset: Split, sample: Sample, found: Finding) -> None:
    values = _values(dataset, dataset.labels, sample.label, found)
    found.require_size(sample.label, (values.shape[0], values.shape[1]))
    numbers, counts = np.unique(values, return_counts=True)
    found.values.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
    _require_known(dataset, found, sample.label, found.values)
    if sample.coarse is not None and sample.coarse != sample.label:
        try:
            coarse = _values(dataset, dataset.coarse_labels, sample.coarse, Finding(sample.image_id))
        except InputError as error:
            found.odd.append(error.message)
        else:
            found.require_size(sample.coarse, (coarse.shape[0], coarse.shape[1]))
            _require_known(dataset, found, sample.coarse, Counter(np.unique(coarse).tolist()))


def _values(dataset: Split, reader: LabelReader, path: Path, found: Finding) -> np.ndarray:
    if path.suffix == POLYGONS:
        found.label_mode = "polygons"
        return read_polygons(path, dataset.spec)
    file = reader.open(path)
    found.label_mode, found.label_orientation, found.reading = file.form, file.orientation or 1, "refused"
    found.palette = file.palette.tobytes() if file.palette is not None else b""
    values, found.reading = reader.labels(file)
    return values


def _require_known(dataset: Split, found: Finding, path: Path, values: Counter[int]) -> None:
    known = {info.label for info in dataset.spec.classes} | set(dataset.spec.ignore)
    if unknown := sorted(set(values) - known):
        shown = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
        found.broken.append((path, f"{path}: {UNKNOWN_VALUES}: {shown}"))


LABEL_KINDS.add("semantic-png", LabelKind(_read, _look, _extent, largest=65535))
