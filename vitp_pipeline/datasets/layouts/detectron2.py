"""detectron2's layout of semantic labels: images/SPLIT and annotations_detectron2/SPLIT, or the like."""

from __future__ import annotations

from vitp_pipeline.datasets.layouts.class_names import class_names
from vitp_pipeline.datasets.layouts.folder import Folder, split_called
from vitp_pipeline.datasets.layouts.labeled import labeled_layout
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.datasets.layouts.pairing import pair

LABELS = ("annotations_detectron2", "stuffthingmaps_detectron2", "labels_detectron2", "sem_seg_detectron2")


def detect(folder: Folder) -> Layout | None:
    """See label folders that its scripts make (`prepare_*_sem_seg.py`), and the images that they belong to."""
    entries: dict[str, dict[str, str]] = {}
    for labels in folder.files:
        parts = labels.split("/")
        if not {*LABELS} & {*parts} or not folder.files[labels]:
            continue
        split = next(filter(None, map(split_called, parts)), "")
        for images, names in folder.images.items():
            same = split == next(filter(None, map(split_called, images.split("/"))), "")
            found = pair(images, names, labels, folder.files[labels]) if same and images != labels else None
            if found is not None and not {*LABELS} & {*images.split("/")} and not images.startswith("annotations"):
                entries.setdefault(split, {"images": found.images, "labels": found.labels})
    return labeled_layout("detectron2", folder, entries, class_names(folder)) if entries else None
