"""COCO and COCO-Stuff: what detectron2 and mmseg derive from the panoptic annotation and the stuffthingmaps."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitp_pipeline.datasets.dataset import Dataset
from vitp_pipeline.datasets.identity import json_ids
from vitp_pipeline.datasets.label_kinds.kind import Sample
from vitp_pipeline.datasets.prepare.work import Source, Work, class_numbers, png
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.decoding.archives import is_file


def semantic(work: Work) -> None:
    """Make `panoptic_semseg_SPLIT2017/*.png`: class numbers 0..132, 255 without a label."""
    dataset, sources = _panoptic(work)

    def make(source: Source) -> None:
        sample = dataset.sample(source.words["id"])

        def labels() -> bytes:
            found = dataset.read_semantic(sample)
            return png(np.where(found == IGNORE, 255, found).astype(np.uint8))

        work.write(source, f"panoptic_semseg_{work.split}2017/{source.relative}", labels)

    work.each(sources, make)


def instances(work: Work) -> None:
    """Make `annotations/panoptic2instances_SPLIT2017.json`: the thing segments as run lengths, crowds included."""
    dataset, sources = _panoptic(work)
    if not sources:
        return

    ids = json_ids(dataset.image_ids)

    def make(source: Source) -> dict[str, Any]:
        sample = dataset.sample(source.words["id"])
        height, width = dataset.image_size(sample)
        image_id = ids[sample.image_id]
        image = {"id": image_id, "file_name": source.words["name"], "height": height, "width": width}
        return {"image": image, "annotations": _entries(dataset, sample, image_id)}

    def whole(entries: list[dict[str, Any]]) -> dict[str, Any]:
        annotations = [annotation for entry in entries for annotation in entry["annotations"]]
        return {
            "images": [entry["image"] for entry in entries],
            # from 1: COCOeval takes a match with the object 0 for none
            "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations, start=1)],
            "categories": [{"id": info.label, "name": info.name} for info in work.spec.classes if info.thing],
        }

    work.annotation_file(f"annotations/panoptic2instances_{work.split}2017.json", sources, make, whole)


def stuff_train_ids(work: Work) -> None:
    """Make `*_labelTrainIds.png` next to the stuffthingmaps: class numbers 0..170, 255 without a label."""
    above = ("stuffthingmaps/", "annotations/", "")
    sources = work.sources(*(f"{folder}{work.split}2017/{{id}}.png" for folder in above))
    made_here = "_labelTrainIds"
    sources = [source for source in sources if not source.words["id"].endswith(made_here)]
    folder = sources[0].relative.rpartition(f"{work.split}2017/")[0] if sources else ""
    reader = work.reader(sources, f"{folder}*2017/{{id}}.png")

    def make(source: Source) -> None:
        relative = source.relative.replace(".png", f"{made_here}.png")
        work.write(source, relative, lambda: png(class_numbers(reader.read(source.path), work.spec, source.path)))

    work.each(sources, make)


def _panoptic(work: Work) -> tuple[Dataset, list[Source]]:
    """Return the split, and a source for each of its images, named by its label PNG; an image without one is broken."""
    annotations = work.file(f"annotations/panoptic_{work.split}2017.json")
    work.needs = work.needs or "annotations/panoptic_*2017.json"
    if not is_file(annotations):
        return None, []  # type: ignore[return-value]
    work.found = True
    dataset = Dataset(work.spec, work.root, work.split)
    base = annotations.parent.parent
    about = ((sample, sample.annotation) for sample in dataset.samples)
    return dataset, [
        Source(base, a.label_name, {"id": s.image_id, "name": a.file_name}) for s, a in about if a is not None
    ]


def _entries(dataset: Dataset, sample: Sample, image_id: int | str) -> list[dict[str, Any]]:
    from pycocotools import mask

    boxes = {s.id: s.bbox for s in sample.segments or ()}
    entries = []
    for found in dataset.read_instances(sample):
        runs = found.rle
        box = boxes[found.id] or mask.toBbox(runs).tolist()
        entries.append(
            {
                "image_id": image_id,
                "category_id": dataset.spec.classes[found.category].label,
                "iscrowd": int(found.iscrowd),
                "area": int(found.area),
                "bbox": [int(v) for v in box],
                "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode()},
            }
        )
    return entries
