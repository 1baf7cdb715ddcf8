"""Cityscapes: make label images from polygons, train ids, and the panoptic annotation, as cityscapesscripts does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.datasets.label_values import LabelReader
from vitp_pipeline.datasets.polygons import read_polygons
from vitp_pipeline.datasets.prepare.work import Source, Work, class_numbers, ids_to_rgb, measured, png
from vitp_pipeline.datasets.spec import DatasetSpec

KINDS = ("gtFine", "gtCoarse")


def label_ids(work: Work) -> None:
    """Make `*_labelIds.png` from `*_polygons.json`."""
    for kind in KINDS:
        sources = work.sources(f"{kind}/{work.split}/{{city}}/{{id}}_{kind}_polygons.json")

        def make(source: Source) -> None:
            work.write(
                source,
                source.relative.replace("_polygons.json", "_labelIds.png"),
                lambda: png(read_polygons(source.path, work.spec).astype(np.uint8)),
            )

        work.each(sources, make)


def train_ids(work: Work) -> None:
    """Make `*_labelTrainIds.png` from `*_labelIds.png`, or from polygons: class numbers, 255 for ignored labels."""
    for kind in KINDS:
        stem = f"{kind}/{work.split}/{{city}}/{{id}}_{kind}"
        sources = work.sources(f"{stem}_labelIds.png", f"{stem}_polygons.json")
        reader = work.reader(sources, f"{kind}/*/{{city}}/{{id}}_{kind}_labelIds.png")

        def make(source: Source, reader: LabelReader = reader) -> None:
            ending = "_labelIds.png" if source.relative.endswith(".png") else "_polygons.json"
            work.write(
                source,
                source.relative.replace(ending, "_labelTrainIds.png"),
                lambda: png(class_numbers(_values(source.path, reader, work.spec), work.spec, source.path)),
            )

        work.each(sources, make)


def panoptic(work: Work) -> None:
    """`gtFine/cityscapes_panoptic_SPLIT/*.png` and `.json` from `*_instanceIds.png`. Segment ids are the instance ids,
    category ids the label ids; a group of objects is a crowd.
    """
    sources = work.sources(f"gtFine/{work.split}/{{city}}/{{id}}_gtFine_instanceIds.png")
    if not sources:
        return
    name = f"gtFine/cityscapes_panoptic_{work.split}"
    reader = work.reader(sources, "gtFine/*/{city}/{id}_gtFine_instanceIds.png", classes=False)

    def make(source: Source) -> dict[str, Any]:
        ids, segments = panoptic_of(reader.read(source.path), work.spec)
        file_name = f"{source.words['id']}_gtFine_panoptic.png"
        work.write(source, f"{name}/{file_name}", lambda: png(ids_to_rgb(ids)))
        # the name of the image is createPanopticImgs.py's, though no image is called so
        image_name = f"{source.words['id']}_gtFine_leftImg8bit.png"
        return {
            "image": {
                "id": source.words["id"],
                "width": ids.shape[1],
                "height": ids.shape[0],
                "file_name": image_name,
            },
            "annotation": {"image_id": source.words["id"], "file_name": file_name, "segments_info": segments},
        }

    def whole(entries: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "images": [entry["image"] for entry in entries],
            "annotations": [entry["annotation"] for entry in entries],
            "categories": [
                {"id": info.label, "name": info.name, "color": list(info.color), "isthing": int(info.thing)}
                for info in work.spec.classes
            ],
        }

    work.annotation_file(f"{name}.json", sources, make, whole)


def panoptic_of(instances: np.ndarray, spec: DatasetSpec) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(ids, segments) of an instanceIds image: a value below 1000 is a label id, others are 1000 · label id + number.
    What is no class of the manifest becomes void.
    """
    values = np.flatnonzero(np.bincount(instances.ravel()))  # much faster than sorting the pixels
    number_of = np.zeros(int(values[-1]) + 1, np.int32)
    number_of[values] = np.arange(len(values))
    numbers = number_of[instances]
    things = {info.label: info.thing for info in spec.classes}
    segments, ids = [], np.zeros(len(values), np.int64)
    for n, found in enumerate(measured(numbers + 1, len(values))):
        value = int(values[n])
        label = value if value < 1000 else value // 1000
        if label not in things or found is None:
            continue
        ids[n] = value
        crowd = int(value < 1000 and things[label])
        segments.append({"id": value, "category_id": label, "area": found[0], "bbox": found[1], "iscrowd": crowd})
    return ids[numbers], segments


def _values(path: Path, reader: LabelReader, spec: DatasetSpec) -> np.ndarray:
    return read_polygons(path, spec) if path.suffix == ".json" else reader.read(path)
