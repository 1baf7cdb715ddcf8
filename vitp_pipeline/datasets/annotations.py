"""COCO annotation files, panoptic or instances, as columns: 118,000 images and a million objects fit in memory."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.datasets.identity import first_twice, image_key
from vitp_pipeline.datasets.spec import DatasetSpec
from vitp_pipeline.decoding.archives import check_named
from vitp_pipeline.decoding.columns import Columns
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.decoding.limits import check_pixels
from vitp_pipeline.decoding.records import shown, whole_number
from vitp_pipeline.errors import InputError
from vitp_pipeline.runtime.progress import say


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

    An invalid record affects only its own image: `segments` and `shapes` of that image raise the reason.

    Attributes:
        path: the file.
        image_ids, file_names: of its images, in the file's order.
        named_by_url: whether the file names are folder and name of `coco_url`s, as LVIS has it.
        sizes: (I, 2) height, width of the images; 0 where the file says none.
        label_names: file names of the label PNGs (panoptic only); "" of an image without annotation.
        unlabeled: why there is no ground truth, or "": files of test splits have images alone. An empty list is one.
    Raises:
        InputError: missing, not such a file, or of another dataset than the manifest's.
    """

    what = "COCO"
    _starts: np.ndarray

    def __init__(self, path: Path, spec: DatasetSpec) -> None:
        self.path, self.spec = path, spec
        self._faults: dict[int, tuple[str, str]] = {}  # by number of the image: what is wrong, and the fix
        with _no_garbage_collection():
            self._take(read_foreign_json(path, "annotation file"))

    def _take(self, data: Any) -> None:
        path, spec = self.path, self.spec
        try:
            check_categories(path, data["categories"], spec)
            _say_other_things(path, data["categories"], spec)
            self._listed = {c["id"] for c in data["categories"]}
            self.unlabeled = ""
            if data.get("annotations") is None:
                data, self.unlabeled = {**data, "annotations": []}, f"{path} has no `annotations`"
            for key in ("images", "annotations"):
                _check_objects(data[key], f"{path}: {key}")
            self.image_ids = _image_ids(path, data, "images", "id")
            self.file_names = [check_named(_file_name(image, path), path) for image in data["images"]]
            if twice := first_twice(self.image_ids):
                one, other = (self.file_names[place] for place in twice)
                raise InputError(
                    f"{path}: image id {self.image_ids[twice[0]]!r} occurs twice: {one} and {other}",
                    "Give each image its own id, and update its annotations",
                )
            self.named_by_url = any(image.get("file_name") is None for image in data["images"])
            self.sizes = self._image_sizes(data["images"])
            self.label_names: list[str] = []
            self._outlines: list[Any] | None = None
            for number in range(len(self) if self.unlabeled else 0):
                self._spoil(number, "", "it has no ground truth: the file has no `annotations`")
            self._take_objects(data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: not a {self.what} file ({error!r})") from error

    def _image_sizes(self, images: list[dict[str, Any]]) -> np.ndarray:
        sizes = np.zeros((len(images), 2), np.int64)
        for number, image in enumerate(images):
            said = image.get("height"), image.get("width")
            if None in said:
                continue
            try:
                height, width = (whole_number(v, f"its `{n}`") for v, n in zip(said, ("height", "width"), strict=True))
                check_pixels(width, height, "it")
                sizes[number] = height, width
            except InputError as error:
                self._spoil(number, "", error.message)
        return sizes

    def _spoil(self, image: int, record: str, reason: str, hint: str = "Correct it, or leave it out") -> None:
        """Keep why an image's annotations cannot be used; the first reason counts."""
        where = f"{record} of image" if record else "image"
        self._faults.setdefault(image, (f"{self.path}: {where} {self.file_names[image]}: {reason}", hint))

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects(self, image: int) -> slice:
        """Return the rows of the columns that belong to the image with this number."""
        return slice(int(self._starts[image]), int(self._starts[image + 1]))

    def segments(self, image: int) -> tuple[GroundTruthSegment, ...]:
        """Return the segments of the image with this number. Raises InputError when one of its records is invalid."""
        if image in self._faults:
            raise InputError(*self._faults[image])
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
        """Return the objects of the image with this number. Raises InputError when one of its records is invalid."""
        rows = self.objects(image)
        areas = self._areas[rows].tolist()
        outlines = self._outlines[rows] if self._outlines is not None else [None] * len(areas)
        return tuple(
            Shape(s.id, s.category, s.iscrowd, s.bbox, None if np.isnan(a) else a, outline)
            for s, a, outline in zip(self.segments(image), areas, outlines, strict=True)
        )

    @property
    def has_outlines(self) -> bool:
        """True if any object has more than a box, or there are no objects."""
        return True

    def _take_objects(self, data: dict[str, Any]) -> None:
        """Take what is annotated: `_starts`, the first row of each image, then the columns."""
        raise NotImplementedError

    def _take_columns(self, entries: list[dict[str, Any]], what: str) -> None:
        """Read the columns of the objects of all images, one after another."""
        index_of = {info.label: k for k, info in enumerate(self.spec.classes)}
        columns = Columns(entries)
        self._ids, labels = columns.whole("id"), columns.whole("category_id").tolist()
        self._classes = np.array([index_of.get(label, -1) for label in labels], np.int16)
        self._crowds, self._boxes, self._areas = columns.flags("iscrowd"), columns.boxes("bbox"), columns.real("area")
        for row in np.flatnonzero(self._classes < 0).tolist():
            if row not in columns.odd:
                columns.odd[row] = reason = f"category id {labels[row]} is not a class of manifest {self.spec.name!r}"
                if labels[row] in self._listed:  # not one odd record: the file is of other classes
                    raise InputError(f"{self.path}: {reason}", "Use the manifest of this dataset")
        for row, reason in sorted(columns.odd.items()):
            image = int(np.searchsorted(self._starts, row, "right")) - 1
            number = entries[row].get("id")
            named = number if type(number) is int else f"number {row - int(self._starts[image])}"
            self._spoil(image, f"{what} {named}", reason)


class PanopticAnnotations(Annotations):
    """An annotation file of COCO panoptic: an entry an image, with its segments."""

    what = "COCO panoptic"

    def _take_objects(self, data: dict[str, Any]) -> None:
        of = _image_ids(self.path, data, "annotations", "image_id")
        annotations = dict(zip(of, data["annotations"], strict=True))
        if twice := first_twice(of):
            raise InputError(f"{self.path}: image {of[twice[0]]!r} has two annotations", "Join or remove one of them")
        infos: list[list[Any]] = []
        first: dict[str, int] = {}
        for number, image_id in enumerate(self.image_ids):
            annotation = annotations.get(image_id)
            name, info = (annotation or {}).get("file_name"), (annotation or {}).get("segments_info")
            fault = f"its `file_name` is {shown(name)}, not a name"
            try:
                self.label_names.append(check_named(name, "its `file_name`") if isinstance(name, str) else "")
            except InputError as error:
                fault = error.message
                self.label_names.append("")
            if annotation is None:
                self._spoil(number, "", "it has no annotation", "Annotate it, or leave it out")
            elif not self.label_names[-1]:
                self._spoil(number, "the annotation", fault, "Write a path with / below the folder of labels")
            elif not isinstance(info, list) or not all(isinstance(segment, dict) for segment in info):
                self._spoil(number, "the annotation", f"its `segments_info` is {shown(info)}, not a list of objects")
            elif (other := first.setdefault(self.label_names[-1], number)) != number:
                for place in (number, other):
                    one = self.file_names[number if place == other else other]
                    self._spoil(place, "the annotation", f"its `file_name` {name!r} is that of image {one}, too")
            infos.append([] if number in self._faults else info or [])
        self._starts = np.cumsum([0, *map(len, infos)])
        self._take_columns([s for info in infos for s in info], "segment")


class InstanceAnnotations(Annotations):
    """An annotation file of COCO instances: an entry an object."""

    what = "COCO instances"

    @property
    def has_outlines(self) -> bool:
        return self._outlines is not None

    def _take_objects(self, data: dict[str, Any]) -> None:
        number = {image_id: n for n, image_id in enumerate(self.image_ids)}
        ids = _image_ids(self.path, data, "annotations", "image_id")
        stray = next((n for n, image_id in enumerate(ids) if image_id not in number), None)
        if stray is not None:
            own = shown(data["annotations"][stray].get("id"))
            raise InputError(f"{self.path}: annotation {own} is of image {shown(ids[stray])}, which is not listed")
        of = np.array([number[image_id] for image_id in ids], np.int64)
        order = np.argsort(of, kind="stable")
        entries = [data["annotations"][n] for n in order]
        self._starts = np.searchsorted(of[order], np.arange(len(number) + 1))
        self._take_columns(entries, "annotation")
        if not entries or any(a.get("segmentation") for a in entries):
            self._outlines = [_compact(a.get("segmentation")) for a in entries]


@dataclass(frozen=True)
class Annotation:
    """Annotations of one image, as the file has them."""

    file: Annotations
    image: int

    @property
    def segments(self) -> tuple[GroundTruthSegment, ...]:
        return self.file.segments(self.image)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.file.shapes(self.image)

    @property
    def file_name(self) -> str:
        """Of the image, below the split's folder of images."""
        return self.file.file_names[self.image]

    @property
    def label_name(self) -> str:
        """Of its label PNG, below the split's folder of labels (panoptic only)."""
        return self.file.label_names[self.image]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), zeros where the file does not say it."""
        height, width = self.file.sizes[self.image].tolist()
        return height, width


def check_categories(path: Path, categories: list[dict[str, Any]], spec: DatasetSpec) -> None:
    """Raise InputError when a category has another name in the annotation file than in the manifest."""
    names = {int(c["id"]): c["name"] for c in categories}
    for info in spec.classes:
        if not info.is_called(names.get(info.label, info.name)):
            raise InputError(
                f"{path}: category {info.label} is {names[info.label]!r} there and {info.name!r} in manifest "
                f"{spec.name!r}",
                "Use the manifest of this dataset",
            )


def _say_other_things(path: Path, categories: list[dict[str, Any]], spec: DatasetSpec) -> None:
    """Print which categories are things in the annotation file and stuff in the manifest, or the other way round."""
    things = {info.label: info.thing for info in spec.classes}
    others = [c for c in categories if "isthing" in c and things.get(c["id"], bool(c["isthing"])) != bool(c["isthing"])]
    if others:
        more = f" (and {len(others) - 1} more categories)" if len(others) > 1 else ""
        words = ("stuff", "a thing") if others[0]["isthing"] else ("a thing", "stuff")
        first = f"category {others[0]['id']} {shown(others[0].get('name'))}"
        say(f"{path}: {first} is {words[1]} there and {words[0]} in manifest {spec.name!r}{more}; the manifest counts")


def _check_objects(records: Any, where: str) -> None:
    """Raise InputError unless it is a list of JSON objects."""
    if not isinstance(records, list):
        raise InputError(f"{where} is {shown(records)}, not a list")
    odd = next((n for n, record in enumerate(records) if not isinstance(record, dict)), None)
    if odd is not None:
        raise InputError(f"{where}[{odd}] is {shown(records[odd])}, not an object", "Remove it")


def _image_ids(path: Path, data: dict[str, Any], entries: str, key: str) -> list[str]:
    """Read the ids of images, or those that annotations name."""
    ids = []
    for number, entry in enumerate(data[entries]):
        try:
            ids.append(image_key(entry[key]))
        except KeyError as error:
            raise InputError(f"{path}: {entries}[{number}] has no `{key}`", "Add it, or remove the entry") from error
        except ValueError as error:
            about = entry.get("file_name") or f"annotation {entry.get('id')}"
            raise InputError(f"{path}: {shown(about)}: {error}", f"Correct its `{key}`") from error
    return ids


def _file_name(image: dict[str, Any], path: Path) -> str:
    """Return the file name; for an image with only a URL (LVIS), folder and name from it."""
    name, url = image.get("file_name"), image.get("coco_url")
    if name is None and isinstance(url, str):
        return "/".join(url.split("/")[-2:])
    if not isinstance(name, str):
        raise InputError(f"{path}: image {shown(image['id'])} has no `file_name`", "Add it, or a `coco_url`")
    return name


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection: cycle searches over millions of new objects take half of the loading time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _compact(outline: Any) -> Any:
    """Store polygons as arrays, a fifth of the memory of lists; invalid ones stay as they are."""
    if not isinstance(outline, list) or not all(isinstance(polygon, list) for polygon in outline):
        return outline
    try:
        return [array("d", p) if set(map(type, p)) <= {int, float} else p for p in outline]
    except OverflowError:
        return outline
