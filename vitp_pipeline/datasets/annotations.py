"""COCO annotation files, panoptic or instances, as columns: 118,000 images and a million objects fit in memory."""

from __future__ import annotations

import gc
import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.datasets.spec import DatasetSpec
from vitp_pipeline.datasets.storage import check_inside, read_bytes
from vitp_pipeline.errors import InputError


@dataclass(frozen=True)
class GroundTruthSegment:
    """A segment of a panoptic ground truth: `id` in the id map, `category` a class index 0..K−1, `bbox` (left, top,
    width, height) in pixels.
    """

    id: int
    category: int
    iscrowd: bool
    bbox: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Shape:
    """An object of an instances file: `outline` is its COCO `segmentation` (polygons or run lengths), or None where
    it has only a box; `area` as the file says it, or None.
    """

    id: int
    category: int
    iscrowd: bool
    bbox: tuple[float, float, float, float] | None
    area: float | None
    outline: Any


class Annotations:
    """The annotation file of a split.

    Attributes:
        path: the file.
        image_ids, file_names: of its images, in the file's order.
        sizes: (I, 2) height, width of the images; 0 where the file says none.
        label_names: file names of the label PNGs (panoptic only).
    Raises:
        InputError: missing, not such a file, or of another dataset than the manifest's.
    """

    def __init__(self, path: Path, spec: DatasetSpec) -> None:
        self.path, self.spec = path, spec
        with _no_garbage_collection():
            self._take(_load(path))

    def _take(self, data: Any) -> None:
        path, spec = self.path, self.spec
        what = "COCO panoptic" if spec.kind == "coco-panoptic" else "COCO instances"
        try:
            check_categories(path, data["categories"], spec)
            # ids become names of arrays
            self.image_ids = [check_inside(str(image["id"]), path) for image in data["images"]]
            self.file_names = [check_inside(str(image["file_name"]), path) for image in data["images"]]
            self.sizes = np.array([(i.get("height", 0), i.get("width", 0)) for i in data["images"]], np.int64)
            self.label_names: list[str] = []
            self._outlines: list[Any] | None = None
            if spec.kind == "coco-panoptic":
                self._take_panoptic(data)
            else:
                self._take_instances(data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: not a {what} file ({error!r})") from error

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects(self, image: int) -> slice:
        """Which rows of the columns are of the image with this number."""
        return slice(int(self._starts[image]), int(self._starts[image + 1]))

    def segments(self, image: int) -> tuple[GroundTruthSegment, ...]:
        rows = self.objects(image)
        return tuple(
            GroundTruthSegment(i, k, c, None if np.isnan(b[0]) else tuple(b))
            for i, k, c, b in zip(
                self._ids[rows].tolist(),
                self._classes[rows].tolist(),
                self._crowds[rows].tolist(),
                self._boxes[rows].tolist(),
                strict=True,
            )
        )

    def shapes(self, image: int) -> tuple[Shape, ...]:
        rows = self.objects(image)
        areas = self._areas[rows].tolist()
        outlines = self._outlines[rows] if self._outlines is not None else [None] * len(areas)
        return tuple(
            Shape(s.id, s.category, s.iscrowd, s.bbox, None if np.isnan(a) else a, outline)
            for s, a, outline in zip(self.segments(image), areas, outlines, strict=True)
        )

    @property
    def has_outlines(self) -> bool:
        """Whether any object has more than a box, or there is no object."""
        return self._outlines is not None

    def _take_panoptic(self, data: dict[str, Any]) -> None:
        annotations = {a["image_id"]: a for a in data["annotations"]}
        if len(annotations) < len(data["annotations"]):
            raise InputError(f"{self.path}: an image has two annotations", "Image ids must be unique")
        infos = []
        for image in data["images"]:
            annotation = annotations.get(image["id"])
            if annotation is None:
                raise InputError(
                    f"{self.path}: image {image['file_name']} has no annotation", "Remove it or annotate it"
                )
            self.label_names.append(check_inside(str(annotation["file_name"]), self.path))
            infos.append(annotation["segments_info"])
        self._starts = np.cumsum([0, *map(len, infos)])
        self._take_columns([s for info in infos for s in info])

    def _take_instances(self, data: dict[str, Any]) -> None:
        number = {image["id"]: n for n, image in enumerate(data["images"])}
        stray = next((a for a in data["annotations"] if a["image_id"] not in number), None)
        if stray is not None:
            raise InputError(
                f"{self.path}: annotation {stray['id']} is of image {stray['image_id']}, which is not listed"
            )
        of = np.array([number[a["image_id"]] for a in data["annotations"]], np.int64)
        order = np.argsort(of, kind="stable")
        entries = [data["annotations"][n] for n in order]
        self._starts = np.searchsorted(of[order], np.arange(len(number) + 1))
        self._take_columns(entries)
        if not entries or any(a.get("segmentation") for a in entries):
            self._outlines = [_compact(a.get("segmentation")) for a in entries]

    def _take_columns(self, entries: list[dict[str, Any]]) -> None:
        """The objects of all images, one after another."""
        index_of = {info.label: k for k, info in enumerate(self.spec.classes)}
        unknown = next((n for n, s in enumerate(entries) if s["category_id"] not in index_of), None)
        if unknown is not None:
            image = self.file_names[int(np.searchsorted(self._starts, unknown, "right")) - 1]
            raise InputError(
                f"{self.path}: category id {entries[unknown]['category_id']} (image {image}) is not a class of "
                f"manifest {self.spec.name!r}",
                "Use the manifest of this dataset",
            )
        none = (np.nan,) * 4
        self._ids = np.array([int(s["id"]) for s in entries], np.int64)
        self._classes = np.array([index_of[s["category_id"]] for s in entries], np.int16)
        self._crowds = np.array([bool(s.get("iscrowd", 0)) for s in entries], bool)
        self._boxes = np.array([s.get("bbox", none) for s in entries], np.float64).reshape(-1, 4)
        self._areas = np.array([s.get("area", np.nan) for s in entries], np.float64)


@dataclass(frozen=True)
class Annotation:
    """What an annotation file says about one image."""

    file: Annotations
    image: int

    @property
    def segments(self) -> tuple[GroundTruthSegment, ...]:
        return self.file.segments(self.image)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.file.shapes(self.image)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), zeros where the file does not say it."""
        height, width = self.file.sizes[self.image].tolist()
        return height, width


def check_categories(path: Path, categories: list[dict[str, Any]], spec: DatasetSpec) -> None:
    """Raises InputError when a category has another name in the annotation file than in the manifest."""
    names = {int(c["id"]): c["name"] for c in categories}
    for info in spec.classes:
        if not info.is_called(names.get(info.label, info.name)):
            raise InputError(
                f"{path}: category {info.label} is {names[info.label]!r} there and {info.name!r} in manifest "
                f"{spec.name!r}",
                "Use the manifest of this dataset",
            )


def _load(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: the annotation file does not exist", "Check --data-root") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})", "Download the annotations again") from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects would otherwise be searched for cycles again and again: half of the time of loading."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _compact(outline: Any) -> Any:
    """Polygons as arrays of numbers, which take a fifth of the memory of lists."""
    return [array("d", polygon) for polygon in outline] if isinstance(outline, list) else outline
