"""The COCO sample: 100 and 50 images of COCO 2017 panoptic, from archives that lightly-ai/coco128_yolo releases.

`images.zip` has the first images of COCO's splits, `panoptic_segmentation.zip` the panoptic labels of 100 of each. The
sample is the first of them in the order of their ids, in COCO's own layout: what the manifest coco-panoptic reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitp_pipeline.datasets.prepare.work import Source, Work
from vitp_pipeline.decoding.archives import is_file, read_bytes
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.errors import InputError

SIZES = {"train": 100, "val": 50}
ANNOTATIONS = "panoptic_segmentation/annotations/panoptic_{split}2017"


def images(work: Work) -> None:
    """Make `SPLIT2017/*.jpg`, copies."""
    _copy(work, f"images/{work.split}2017/{{name}}", f"{work.split}2017", "images")


def labels(work: Work) -> None:
    """Make `panoptic_SPLIT2017/*.png`, copies."""
    _copy(work, f"{ANNOTATIONS.format(split=work.split)}/{{name}}", f"panoptic_{work.split}2017", "annotations")


def annotation_file(work: Work) -> None:
    """Make `annotations/panoptic_SPLIT2017.json`: the entries of the sample."""
    if content := _sample(work):
        file = f"{ANNOTATIONS.format(split=work.split)}.json"
        (source,) = work.sources(file)
        work.write(source, f"annotations/panoptic_{work.split}2017.json", lambda: json.dumps(content).encode())


def _copy(work: Work, pattern: str, folder: str, key: str) -> None:
    """Copy the files that the entries of `key` name. Raises PartialError for those that are missing."""
    content = _sample(work)
    there = {source.words["name"]: source for source in work.sources(pattern)} if content else {}
    if not content or not there:
        return
    some = next(iter(there.values()))
    names = [str(entry["file_name"]) for entry in content[key]]

    def make(source: Source) -> None:
        if not is_file(source.path):
            raise InputError(f"{source.path}: missing")
        work.write(source, f"{folder}/{source.words['name']}", _reader(source.path))

    work.each([there.get(name) or _beside(some, name) for name in names], make)


def _beside(source: Source, name: str) -> Source:
    return Source(source.base, f"{source.relative.rpartition('/')[0]}/{name}", {"name": name})


def _reader(path: Path) -> Callable[[], bytes]:
    return lambda: read_bytes(path)


def _sample(work: Work) -> dict[str, Any]:
    """Read the annotation file's first entries in the order of their ids; nothing where it is not there."""
    path = work.file(f"{ANNOTATIONS.format(split=work.split)}.json")
    work.needs = work.needs or f"{ANNOTATIONS.format(split=work.split)}.json"
    return _first(path, SIZES[work.split]) if is_file(path) else {}


def _first(path: Path, count: int) -> dict[str, Any]:
    """Read an annotation file and keep the entries of its first images. Raises InputError where it is none."""
    content = read_foreign_json(path, "annotation file")
    try:
        entries = {entry["image_id"]: entry for entry in content["annotations"]}
        images = sorted((image for image in content["images"] if image["id"] in entries), key=lambda image: image["id"])
        images = images[:count]
        chosen = [entries[image["id"]] for image in images]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not an annotation file of COCO panoptic ({error!r})", "Download it again") from error
    return {**content, "images": images, "annotations": chosen}
