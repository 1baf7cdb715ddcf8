"""A folder of images without labels: proposals, classes and exports, but no figures and no training."""

from __future__ import annotations

from vitp_pipeline.datasets.layouts.class_names import class_names
from vitp_pipeline.datasets.layouts.folder import Folder, joined, pattern_of
from vitp_pipeline.datasets.layouts.layout import Layout, SeenClass


def detect(folder: Folder) -> Layout | None:
    """See images anywhere below the folder; their classes are those of a file of names, or else the generator's."""
    if not folder.images:
        return None
    names = [name for own in folder.images.values() for name in own]
    if len(folder.images) == 1:
        (place,) = folder.images
        pattern = joined(place, pattern_of(names))
    else:
        pattern = f"**/{pattern_of(names)}"
    named = class_names(folder)
    images = [folder.root / place / name for place, own in folder.images.items() for name in own[:2]][:8]
    return Layout(
        "photographs without labels",
        splits={"val": {"images": pattern}},
        classes=tuple(SeenClass(name, k) for k, name in enumerate(named.names)) if named else (),
        remarks=("there are no labels: masks are classified and exported, nothing is trained or measured",),
        images=images,
    )
