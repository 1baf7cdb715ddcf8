"""A folder of images without labels: proposals, classes and exports, but no figures and no training."""

from __future__ import annotations

from typing import Any

from vitp_pipeline.datasets.layouts.class_names import class_names
from vitp_pipeline.datasets.layouts.folder import Folder, joined, patterns_of
from vitp_pipeline.datasets.layouts.layout import Layout, SeenClass


def detect(folder: Folder) -> Layout | None:
    """See images anywhere below the folder; their classes are those of a file of names, or else the generator's."""
    if not folder.images:
        return None
    names = [name for own in folder.images.values() for name in own]
    place = next(iter(folder.images)) if len(folder.images) == 1 else "**"
    entries: dict[str, dict[str, Any]] = {
        pattern[2:]: {"images": joined(place, pattern)} for pattern in patterns_of(names)
    }
    splits = {"val": next(iter(entries.values()))} if len(entries) == 1 else {**entries, "val": {"of": list(entries)}}
    named = class_names(folder)
    images = [folder.root / place / name for place, own in folder.images.items() for name in own[:2]][:8]
    return Layout(
        "photographs without labels",
        splits=splits,
        classes=tuple(SeenClass(name, k) for k, name in enumerate(named.names)) if named else (),
        remarks=("there are no labels: masks are classified and exported, nothing is trained or measured",),
        images=images,
    )
