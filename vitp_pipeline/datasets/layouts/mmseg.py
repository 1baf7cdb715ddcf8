"""mmsegmentation's layout: img_dir/SPLIT and ann_dir/SPLIT."""

from __future__ import annotations

from vitp_pipeline.datasets.layouts.class_names import class_names
from vitp_pipeline.datasets.layouts.folder import Folder, split_called
from vitp_pipeline.datasets.layouts.labeled import labeled_layout
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.datasets.layouts.pairing import pair

IMAGES, LABELS = "img_dir", "ann_dir"


def detect(folder: Folder) -> Layout | None:
    """See both folders at the root, or one level below it."""
    entries: dict[str, dict[str, str]] = {}
    for place, names in folder.images.items():
        parts = place.split("/")
        if IMAGES not in parts:
            continue
        labels = "/".join(LABELS if part == IMAGES else part for part in parts)
        found = pair(place, names, labels, folder.files.get(labels, []))
        if found is not None:
            split = next(filter(None, map(split_called, parts[parts.index(IMAGES) + 1 :])), "")
            entries.setdefault(split, {"images": found.images, "labels": found.labels})
    return labeled_layout("mmsegmentation", folder, entries, class_names(folder)) if entries else None
