"""Datasets that have a shipped manifest, by folders that only they have."""

from __future__ import annotations

from vitp_pipeline.datasets.layouts.folder import Folder
from vitp_pipeline.datasets.layouts.layout import Layout

KNOWN = {
    "cityscapes": ("leftImg8bit", "gtFine"),
    "ade20k": ("objectInfo150.txt", "images/training", "annotations/training"),
    "coco-stuff": ("images/train2017", "stuffthingmaps/train2017"),
}
ABOVE = {"ade20k": "ADEChallengeData2016"}
"""Folder that the archive of a dataset unpacks to."""


def detect(folder: Folder) -> Layout | None:
    """See a dataset at the root, or in the folder that its archive makes."""
    for name, marks in KNOWN.items():
        above = ABOVE.get(name)
        if folder.has(*marks) or (above and folder.has(*(f"{above}/{mark}" for mark in marks))):
            first = next(((f, names) for f, names in sorted(folder.images.items())), ("", []))
            images = [folder.root / first[0] / image for image in first[1][:8]]
            return Layout(f"{name}, which has a shipped manifest", shipped=name, images=images)
    return None
