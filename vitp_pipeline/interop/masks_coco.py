"""Masks in a file of COCO's results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitp_pipeline.datasets.identity import Claims, first_twice
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.decoding.records import shown
from vitp_pipeline.errors import InputError
from vitp_pipeline.interop.mask_content import Detection
from vitp_pipeline.interop.mask_import import MASK_FORMATS, Detections, Found, ImageSet, image_id_in


@MASK_FORMATS.register("coco")
def open_coco(path: Path, dataset: ImageSet, no_object_share: float) -> Detections:
    """Categories are the labels of the manifest's classes."""
    labels = {c.label: k for k, c in enumerate(dataset.spec.classes)}
    return Detections(path, RESULTS, labels, lambda claims: read_coco(path, labels, claims), dataset, no_object_share)


RESULTS = "A list of objects with image_id, category_id, segmentation and score"


def read_coco(path: Path, classes: Mapping[int, int], claims: Claims) -> dict[str, Found]:
    """COCO results: a list of {image_id, category_id, segmentation, score}, or a data set whose annotations have scores
    and whose images have file names, by which they are known: its ids are its own.

    Raises:
        InputError: not such a file, two claims on one image, or categories that are all others than the manifest's.
    """
    content = read_foreign_json(path, "file of results")
    what, images = "result", claims.index
    meant: dict[str, str | None] = {}  # ids of the split by the file's
    own_ids = isinstance(content, dict)
    if own_ids:
        meant = _images_of_data_set(path, _list_of(path, content, "images"), claims)
        what, content = "annotation", _list_of(path, content, "annotations")
    elif not isinstance(content, list):
        raise InputError(f"{path}: is {shown(content)}, no results as COCO has them", RESULTS)
    found: dict[str, Found] = {}
    categories: list[Any] = []
    for number, entry in enumerate(content):
        key = image_id_in(entry, "image_id", f"{path}: {what} {number}", claims)
        if key is None:
            continue
        if key not in meant:
            if own_ids:
                claims.odd.append(f"{path}: {what} {number}: its image {shown(entry['image_id'])} is not listed")
                continue
            meant[key] = claims.add(key, images.by_id_or_path(key))
        categories.append(entry.get("category_id"))
        own = Detection(
            f"{what} {number} (image {shown(entry['image_id'])})",
            categories[-1],
            entry.get("score"),
            entry.get("segmentation"),
        )
        if (image_id := meant[key]) is not None:
            found.setdefault(image_id, []).append(own)  # type: ignore[union-attr]
    if categories and not any(isinstance(category, int | float) and category in classes for category in categories):
        raise InputError(
            f"{path}: none of its categories, like {shown(categories[0])}, is one of the manifest",
            "Category ids are the `label` of the manifest's classes",
        )
    return found


def _list_of(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise InputError(f"{path}: has no list of `{key}`, as a data set of COCO has", RESULTS)
    found: list[Any] = content[key]
    return found


def _images_of_data_set(path: Path, images: list[Any], claims: Claims) -> dict[str, str | None]:
    """Ids of the split by those that a data set gives to its images. Raises InputError where one occurs twice."""
    keys, names = [], []
    for number, image in enumerate(images):
        where = f"{path}: image {number}"
        if (key := image_id_in(image, "id", where, claims)) is None:
            continue
        if isinstance(name := image.get("file_name"), str):
            keys.append(key)
            names.append(name)
        else:
            claims.odd.append(f"{where}: its `file_name` is {shown(name)}, not a name")
    for one, other, kind in ((keys, names, "image id"), (names, keys, "file name")):
        if twice := first_twice(one):
            first, second = (other[place] for place in twice)
            raise InputError(f"{path}: {kind} {one[twice[0]]!r} occurs twice: {first!r} and {second!r}")
    return {key: claims.add(name, claims.index.by_path(name)) for key, name in zip(keys, names, strict=True)}
