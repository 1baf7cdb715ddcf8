"""PASCAL VOC's layout: JPEGImages, SegmentationClass, lists of names in ImageSets/Segmentation."""

from __future__ import annotations

from vitp_pipeline.datasets.layouts.class_names import class_names
from vitp_pipeline.datasets.layouts.folder import Folder, joined
from vitp_pipeline.datasets.layouts.labeled import labeled_layout
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.datasets.layouts.pairing import pair

LABELS, IMAGES = ("SegmentationClass", "SegmentationClassRaw", "SegmentationClassAug"), "JPEGImages"


def detect(folder: Folder) -> Layout | None:
    """See VOC's folders at the root, or in VOCdevkit/VOC2012; without lists, or without JPEGImages, as many tools
    export them.
    """
    for place in sorted(folder.files, key=lambda f: (f.count("/"), f)):
        above, _, name = place.rpartition("/")
        if name not in LABELS:
            continue
        near = [f for f in folder.images if f.rpartition("/")[0] == above and f != place]
        for images in sorted(near, key=lambda f: (f.rpartition("/")[2] != IMAGES, f)):
            found = pair(images, folder.images[images], place, folder.files[place])
            if found is None:
                continue
            entry = {"images": found.images, "labels": found.labels}
            lists = joined(above, "ImageSets/Segmentation")
            named = {
                s: f"{lists}/{s}.txt" for s in ("train", "val", "test") if f"{s}.txt" in folder.files.get(lists, [])
            }
            entries = {split: {**entry, "list": path} for split, path in named.items()} or {"": entry}
            return labeled_layout("PASCAL VOC", folder, entries, class_names(folder))
    return None
