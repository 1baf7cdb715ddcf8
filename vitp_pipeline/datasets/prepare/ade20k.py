"""ADE20K: make panoptic and instance annotations from the instance PNGs, as Mask2Former's scripts do.

A pixel of `annotations_instance/*.png` has the number of its class among the 100 things (1..100) in red and the number
of its object in the image in green; 0 is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.datasets.label_files import label_colors, open_exactly
from vitp_pipeline.datasets.prepare.work import Source, Work, class_numbers, ids_to_rgb, measured, png
from vitp_pipeline.datasets.spec import DatasetSpec
from vitp_pipeline.errors import InputError

FOLDERS = {"train": "training", "val": "validation"}
LABELS = "annotations/*/{id}.png"


def semantic(work: Work) -> None:
    """Make `annotations_detectron2/`: class numbers 0..149, 255 without a label."""
    sources = work.sources(f"annotations/{FOLDERS[work.split]}/{{id}}.png")
    reader = work.reader(sources, LABELS)

    def make(source: Source) -> None:
        relative = source.relative.replace("annotations/", "annotations_detectron2/", 1)
        work.write(source, relative, lambda: png(class_numbers(reader.read(source.path), work.spec, source.path)))

    work.each(sources, make)


def panoptic(work: Work) -> None:
    """Make `ade20k_panoptic_SPLIT/*.png` and `.json`: stuff from the semantic labels, things from the instances on top.

    As in Mask2Former's script, areas and boxes of stuff are those before things were laid over it.
    """
    sources, name = _sources(work), f"ade20k_panoptic_{work.split}"
    if not sources:
        return
    reader = work.reader(work.sources(f"annotations/{FOLDERS[work.split]}/{{id}}.png"), LABELS)

    def make(source: Source) -> dict[str, Any]:
        instances = read_instances(source.path, work.spec)
        labels = work.file(source.relative.replace("annotations_instance/", "annotations/", 1))
        classes = class_numbers(reader.read(labels), work.spec, labels)
        if classes.shape != instances[0].shape:
            raise InputError(f"{source.path}: has another size than {labels}")
        ids, segments = panoptic_of(classes, *instances, work.spec.things)
        file_name = f"{source.words['id']}.png"
        work.write(source, f"{name}/{file_name}", lambda: png(ids_to_rgb(ids)))
        annotation = {"image_id": source.words["id"], "file_name": file_name, "segments_info": segments}
        return {"image": _image_entry(source, ids), "annotation": annotation}

    def whole(entries: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "images": [entry["image"] for entry in entries],
            "annotations": [entry["annotation"] for entry in entries],
            "categories": [
                # the names that detectron2 and mmdet look for
                {
                    "id": k,
                    "name": (info.aliases or (info.name,))[0],
                    "isthing": int(info.thing),
                    "color": list(info.color),
                }
                for k, info in enumerate(work.spec.classes)
            ],
        }

    work.annotation_file(f"{name}.json", sources, make, whole)


def instances(work: Work) -> None:
    """Make `ade20k_instance_SPLIT.json`: the things as run lengths."""
    sources = _sources(work)
    if not sources:
        return

    def make(source: Source) -> dict[str, Any]:
        from pycocotools import mask

        numbers, classes = read_instances(source.path, work.spec)
        entries = []
        for n, found in enumerate(measured(numbers, len(classes)), start=1):
            if found is not None:
                runs = mask.encode(np.asfortranarray(numbers == n, np.uint8))
                entries.append(
                    {
                        "image_id": source.words["id"],
                        "iscrowd": 0,
                        "category_id": classes[n - 1],
                        "bbox": found[1],
                        "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode()},
                        "area": found[0],
                    }
                )
        return {"image": _image_entry(source, numbers), "annotations": entries}

    def whole(entries: list[dict[str, Any]]) -> dict[str, Any]:
        annotations = [annotation for entry in entries for annotation in entry["annotations"]]
        return {
            "images": [entry["image"] for entry in entries],
            "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations, start=1)],
            "categories": [{"id": k, "name": info.name} for k, info in enumerate(work.spec.classes) if info.thing],
        }

    work.annotation_file(f"ade20k_instance_{work.split}.json", sources, make, whole)


def read_instances(path: Path, spec: DatasetSpec) -> tuple[np.ndarray, list[int]]:
    """Read an instance PNG as ((H, W) int32 object numbers 1..N with 0 = none, the class of each 0..149); a number
    without pixels has class −1.

    Raises:
        InputError: unreadable, or an object with two classes, or with one that does not exist.
    """
    rgb = label_colors(open_exactly(path, "instance image"), "instance image")
    numbers, kinds = rgb[..., 1].astype(np.int32), rgb[..., 0].astype(np.int32)
    things = [k for k, thing in enumerate(spec.things) if thing]
    classes = [-1] * int(numbers.max(initial=0))
    for pair in np.unique(numbers * 256 + kinds).tolist():
        number, kind = divmod(pair, 256)
        if number == 0:
            continue
        if not 1 <= kind <= len(things):
            raise InputError(f"{path}: object {number} has the class {kind}, known are 1..{len(things)}")
        if classes[number - 1] != -1:
            raise InputError(f"{path}: object {number} has two classes")
        classes[number - 1] = things[kind - 1]
    return numbers, classes


def panoptic_of(
    semantic: np.ndarray, numbers: np.ndarray, classes: list[int], things: tuple[bool, ...]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """((H, W) segment ids, segments). An id is 1000 · (class + 1) + object number, which is 0 for stuff."""
    ids, segments = np.zeros(semantic.shape, np.int64), []

    def add(category: int, number: int, found: tuple[int, list[int]]) -> int:
        key = 1000 * (category + 1) + number
        entry = {"id": key, "category_id": category, "area": found[0], "bbox": found[1], "iscrowd": 0}
        segments.append(entry)
        return key

    regions = np.where(semantic == 255, 0, semantic.astype(np.int32) + 1)
    for k, found in enumerate(measured(regions, len(things))):
        if found is not None and not things[k]:
            ids[semantic == k] = add(k, 0, found)
    for n, found in enumerate(measured(numbers, len(classes)), start=1):
        if found is not None:
            ids[numbers == n] = add(classes[n - 1], n, found)
    return ids, segments


def _sources(work: Work) -> list[Source]:
    return work.sources(f"annotations_instance/{FOLDERS[work.split]}/{{id}}.png")


def _image_entry(source: Source, array: np.ndarray) -> dict[str, Any]:
    name = source.words["id"]
    return {"id": name, "file_name": f"{name}.jpg", "width": array.shape[1], "height": array.shape[0]}
