"""The layout of label images that a detector has paired with photographs: their kind and classes are read from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitp_pipeline.datasets.file_finder import Places
from vitp_pipeline.datasets.layouts.class_names import NamedClasses
from vitp_pipeline.datasets.layouts.folder import Folder, joined
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.datasets.layouts.pairing import splits_of
from vitp_pipeline.datasets.layouts.sampled_labels import sample_labels, spread


def labeled_layout(
    title: str, folder: Folder, entries: Mapping[str, dict[str, Any]], named: NamedClasses | None
) -> Layout | None:
    """Make the layout of label images: read a sample of them to know their kind and classes.

    Args:
        entries: of [splits] by name, "" for no split.
        named: class names beside the dataset.
    Raises:
        InputError: none of the label images can be read as labels.
    """
    splits, remarks = splits_of(entries)
    places = Places(folder.root, ("",))
    labels, images = [], []
    for entry in {repr(sorted(e.items())): e for e in entries.values()}.values():
        files = places.images((entry["images"],))
        images += [files.path(n) for n in range(min(8, len(files)))]
        labels += spread(sorted(places.beside((entry["labels"],)).all()), 64)
        if others := _otherwise(folder, entry["images"]):
            remarks += (f"images like {others[0]} ({len(others)}) are left out: a split has one ending",)
    if not labels:
        return None
    seen = sample_labels(labels, named)
    return Layout(
        title,
        seen.kind,
        splits,
        seen.classes,
        seen.ignore,
        seen.ignore_colors,
        guessed=seen.guessed,
        remarks=(*seen.remarks, *remarks),
        images=images,
    )


def _otherwise(folder: Folder, pattern: str) -> list[str]:
    """Images in the folder of a pattern like `images/*.jpg` that end in another way."""
    above, _, name = pattern.rpartition("/")
    if not name.startswith("*."):
        return []
    return [joined(above, image) for image in folder.images.get(above, []) if not image.endswith(name[1:])]
