"""COCO's layout, detectron2's and Roboflow's of it: JSON files of instances or panoptic segments, images in folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitp_pipeline.datasets.layouts.folder import Folder, split_called
from vitp_pipeline.datasets.layouts.layout import Layout, SeenClass
from vitp_pipeline.datasets.layouts.pairing import splits_of
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.errors import InputError

INSTANCES, PANOPTIC = "coco-instances", "coco-panoptic"
TRIED = 8
"""Names of images that are looked for in every folder."""
OTHERS = ("captions", "person_keypoints", "image_info")
"""Beginnings of COCO's files that have no masks."""


def detect(folder: Folder) -> Layout | None:
    """See panoptic segments where their PNG files are there, else objects."""
    files = {name: content for name in folder.ending(".json") if (content := _annotations(folder.root / name))}
    for kind in (PANOPTIC, INSTANCES):
        entries, classes, images = _entries(folder, files, kind)
        if entries:
            splits, remarks = splits_of(entries)
            missing = [name for name in files if _kind(files[name]) == kind and not _entry(folder, name, files[name])]
            remarks += tuple(f"{name} is left out: its images were not found" for name in missing)
            return Layout(
                f"{kind.replace('-', ' ').replace('coco', 'COCO')}",
                kind,
                splits,
                classes,
                remarks=remarks,
                images=images,
            )
    return None


def _annotations(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; None where it lists no annotated images."""
    if path.name.startswith(OTHERS):
        return None
    try:
        content = read_foreign_json(path, "annotation file")
    except InputError:
        return None
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        return None
    entries = (*content["images"][:1], *content["annotations"][:1], *content["categories"])
    fits = all(isinstance(entry, dict) for entry in entries) and content["images"] and content["categories"]
    named = all(isinstance(c.get("name"), str) and isinstance(c.get("id"), int) for c in content["categories"])
    return content if fits and named else None


def _kind(content: dict[str, Any]) -> str:
    return PANOPTIC if "segments_info" in next(iter(content["annotations"]), {}) else INSTANCES


def _entries(
    folder: Folder, files: dict[str, dict[str, Any]], kind: str
) -> tuple[dict[str, dict[str, Any]], tuple[SeenClass, ...], list[Path]]:
    """Return the entries of the splits, the classes of the first file, and some images."""
    found: dict[str, dict[str, Any]] = {}
    classes: tuple[SeenClass, ...] = ()
    images: list[Path] = []
    for name, content in files.items():
        if _kind(content) != kind or (entry := _entry(folder, name, content)) is None:
            continue
        split = next(filter(None, map(split_called, re.split(r"[/_.\-]", name))), "")
        found.setdefault(split, entry)
        classes = classes or _classes(content)
        images += [folder.root / entry["images"] / image["file_name"] for image in content["images"][:TRIED]]
    return found, classes, images


def _entry(folder: Folder, name: str, content: dict[str, Any]) -> dict[str, Any] | None:
    """Return the entry of a split; None where its images, or its PNG files, are not there."""
    images = _holding(folder, [image.get("file_name", "") for image in content["images"]], name)
    if images is None:
        return None
    if _kind(content) == INSTANCES:
        return {"images": images, "annotations": name}
    labels = _holding(folder, [entry.get("file_name", "") for entry in content["annotations"]], name)
    return None if labels is None else {"images": images, "labels": labels, "annotations": name}


def _holding(folder: Folder, names: list[str], beside: str) -> str | None:
    """Return the folder that holds files of these names, those near the JSON file first; None for none."""
    tried = [Path(name) for name in names[:TRIED] if isinstance(name, str) and name]
    own = beside.rpartition("/")[0]
    counts = {
        place: sum((folder.root / place / name).is_file() for name in tried)
        for place in sorted(folder.files, key=lambda place: (place != own, place))
    }
    best = max(counts, key=lambda place: counts[place], default=None)
    return (best or ".") if best is not None and tried and counts[best] else None


def _classes(content: dict[str, Any]) -> tuple[SeenClass, ...]:
    categories = [c for c in content["categories"] if 0 <= c["id"] < 2**31 and c["name"].strip()]
    used = {entry.get("category_id") for entry in content["annotations"]}
    if categories and categories[0].get("supercategory") in ("none", None) and categories[0]["id"] == 0:
        # Roboflow writes the name of the project as a category of its own, which nothing has
        categories = [c for c in categories if c["id"] != 0 or 0 in used] or categories
    return tuple(
        SeenClass(c["name"], c["id"], bool(c.get("isthing", 1)), _color(c.get("color")))
        for c in sorted(categories, key=lambda c: int(c["id"]))
    )


def _color(value: Any) -> tuple[int, int, int] | None:
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return (value[0], value[1], value[2])
    return None
