"""A split of a dataset on disk: which images it has, and their ground truth."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.images import read_labels, read_rgb, read_segment_ids
from vitp_pipeline.datasets.regions import boxes_of_regions, connected_regions, number_type
from vitp_pipeline.datasets.spec import IGNORE, DatasetSpec
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import Size


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
class Sample:
    """One image of a split. Paths are absolute; `segments` are the raw COCO segments, else None; `coarse` is its coarse
    label file, if the manifest names such files.
    """

    image_id: str
    image: Path
    label: Path
    segments: tuple[GroundTruthSegment, ...] | None = field(default=None, repr=False)
    coarse: Path | None = None


class Dataset:
    """The samples of one split, in a fixed order, and readers for them.

    Args:
        spec: the manifest.
        root: the data root.
        split: a split that the manifest names.
        limit: keep only the first `limit` images.
    Raises:
        UsageError: no such split.
        InputError: folder or annotation file missing or broken, an image id twice, no images.
    """

    def __init__(self, spec: DatasetSpec, root: Path, split: str, limit: int | None = None) -> None:
        if split not in spec.splits:
            raise UsageError(f"{spec.name} has no split {split!r}", f"It has: {', '.join(spec.splits)}")
        if not root.is_dir():
            raise InputError(f"{root}: this data root is not a folder", "Give the dataset's folder as --data-root")
        self.spec, self.root, self.split = spec, root, split
        self.samples = self._list()[:limit]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def by_id(self) -> dict[str, Sample]:
        return {sample.image_id: sample for sample in self.samples}

    def sample(self, image_id: str) -> Sample:
        """The sample of an id. Raises InputError when the split has none (any more)."""
        try:
            return self.by_id[image_id]
        except KeyError:
            where = self.root / self.spec.splits[self.split].images
            raise InputError(f"{where}: no image with the id {image_id!r}", "Check --data-root") from None

    def read_image(self, sample: Sample) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return read_rgb(sample.image)

    def read_semantic(self, sample: Sample, coarse: bool = False) -> np.ndarray:
        """(H, W) int16 class indices, IGNORE where there is no label; crowd segments keep their class.

        Args:
            coarse: read the coarse label file instead (`has_coarse`).
        Raises:
            InputError: missing or broken label, or a value that the manifest does not know.
        """
        if self.spec.kind == "coco-panoptic":
            ids, segments = self.read_panoptic(sample)
            return _replaced(ids, {0: IGNORE, **{s.id: s.category for s in segments}}, np.dtype(np.int16))
        path = sample.coarse if coarse and sample.coarse else sample.label
        labels = read_labels(path)
        lut = self._label_lut
        known = np.zeros(len(lut) + 1, bool)
        known[:-1] = lut != _UNKNOWN
        clipped = np.where((labels >= 0) & (labels < len(lut)), labels, len(lut))
        if not known[clipped].all():
            odd = int(labels[~known[clipped]][0])
            raise InputError(
                f"{path}: the label value {odd} is neither a class nor ignored in manifest {self.spec.name!r}",
                "Add it to `classes` or to `labels.ignore`",
            )
        return lut[labels]

    def read_panoptic(self, sample: Sample) -> tuple[np.ndarray, list[GroundTruthSegment]]:
        """((H, W) int32 segment ids with 0 = void, the segments). Only for panoptic label kinds.

        Raises:
            InputError: missing or broken PNG, or ids that the annotation file does not list.
        """
        if sample.segments is None:
            raise InputError(f"{self.spec.name}: its labels have no segments, so there is no panoptic ground truth")
        ids = read_segment_ids(sample.label)
        listed = {s.id for s in sample.segments} | {0}
        if len(listed) <= len(sample.segments):
            raise InputError(
                f"{self.spec.splits[self.split].annotations}: {sample.image.name} lists a segment id twice, or id 0",
                "Download the annotations again",
            )
        known = np.array(sorted(listed))
        unknown = ids[known[np.searchsorted(known, ids).clip(max=len(known) - 1)] != ids]
        if len(unknown):
            raise InputError(
                f"{sample.label}: segment id {unknown.min()} is not in {self.spec.splits[self.split].annotations}",
                "PNG folder and JSON must be of the same release",
            )
        return ids, list(sample.segments)

    def read_regions(self, sample: Sample, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The objects of an image: its segments, or the connected pieces of its classes where labels have no segments
        (`connected_regions`: pieces below 0.05 % of the image are no objects).

        Returns:
            ((H, W) integer numbers 0..S−1, IGNORE where there is none; (S,) int64 classes). A crowd is one object.
        Raises:
            InputError: as `read_semantic`.
        """
        if sample.segments is None:
            return connected_regions(self.read_semantic(sample, coarse))
        ids, segments = self.read_panoptic(sample)
        numbers = _replaced(ids, {0: IGNORE, **{s.id: n for n, s in enumerate(segments)}}, number_type(len(segments)))
        return numbers, np.array([s.category for s in segments], np.int64)

    def read_boxes(self, sample: Sample, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """The boxes of an image's objects, things and stuff: those of the annotation file, without crowds and without
        reading the label image; or around the connected pieces where labels have no segments (`read_regions`).

        Args:
            size: (H, W) of the image, at which boxes are cut off.
        Returns:
            ((M, 4) float64 (top, left, bottom, right) edges in pixels, (M,) int64 classes); M may be 0.
        Raises:
            InputError: a segment without a box, an unreadable label image, or one of another size.
        """
        if sample.segments is None:
            numbers, classes = self.read_regions(sample)
            if numbers.shape != size:
                raise InputError(f"{sample.label}: its image {sample.image.name} has another size")
            return boxes_of_regions(numbers, len(classes)), classes
        wanted = [s for s in sample.segments if not s.iscrowd]
        if without := [s for s in wanted if s.bbox is None]:
            raise InputError(
                f"{self.spec.splits[self.split].annotations}: segment {without[0].id} of {sample.image.name} has no "
                "`bbox`",
                'Train on data = ["fine"], or add the boxes',
            )
        left, top, width, height = np.array([s.bbox for s in wanted], float).reshape(-1, 4).T
        edges = np.stack([top, left, top + height, left + width], axis=1).clip(0, [*size, *size])
        some = ((edges[:, 2:] - edges[:, :2]) > 0).all(axis=1)
        return edges[some], np.array([s.category for s in wanted], np.int64)[some]

    @property
    def has_segments(self) -> bool:
        return self.spec.kind == "coco-panoptic"

    @property
    def has_coarse(self) -> bool:
        """Whether the split has coarse label files of its own."""
        return self.spec.splits[self.split].labels_coarse is not None

    @cached_property
    def _label_lut(self) -> np.ndarray:
        lut = np.full(max([c.label for c in self.spec.classes] + list(self.spec.ignore)) + 1, _UNKNOWN, np.int16)
        for value in self.spec.ignore:
            lut[value] = IGNORE
        for index, info in enumerate(self.spec.classes):
            lut[info.label] = index
        return lut

    def _list(self) -> list[Sample]:
        samples = self._list_coco() if self.spec.kind == "coco-panoptic" else self._list_folder()
        if not samples:
            where = self.root / self.spec.splits[self.split].images
            raise InputError(f"{where}: no images there", "Check --data-root and the manifest's split")
        seen: dict[str, Path] = {}
        for sample in samples:
            if sample.image_id in seen:
                raise InputError(
                    f"image id {sample.image_id!r} occurs twice: {seen[sample.image_id]} and {sample.image}",
                    "Ids must be unique in a split",
                )
            seen[sample.image_id] = sample.image
        return samples

    def _list_folder(self) -> list[Sample]:
        split = self.spec.splits[self.split]
        samples = []
        for image in sorted(self.root.glob(split.images)):
            relative = image.relative_to(self.root)
            words = {"stem": image.stem, "dir": relative.parent.as_posix(), "name": image.name}
            coarse = self.root / split.labels_coarse.format(**words) if split.labels_coarse else None
            samples.append(Sample(image.stem, image, self.root / split.labels.format(**words), coarse=coarse))
        return samples

    def _list_coco(self) -> list[Sample]:
        split = self.spec.splits[self.split]
        path = self.root / str(split.annotations)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: the annotation file does not exist", "Check --data-root") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not JSON ({error})", "Download the annotations again") from error
        try:
            self._check_categories(path, data["categories"])
            return self._coco_samples(path, data)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a COCO panoptic file ({error!r})") from error

    def _coco_samples(self, path: Path, data: dict) -> list[Sample]:
        split = self.spec.splits[self.split]
        index_of = {info.label: k for k, info in enumerate(self.spec.classes)}
        annotations = {a["image_id"]: a for a in data["annotations"]}
        if len(annotations) < len(data["annotations"]):
            raise InputError(f"{path}: an image has two annotations", "Image ids must be unique")
        samples = []
        for image in data["images"]:
            annotation = annotations.get(image["id"])
            if annotation is None:
                raise InputError(f"{path}: image {image['file_name']} has no annotation", "Remove it or annotate it")
            segments = []
            for s in annotation["segments_info"]:
                if s["category_id"] not in index_of:
                    raise InputError(
                        f"{path}: category id {s['category_id']} (image {image['file_name']}) is not a class of "
                        f"manifest {self.spec.name!r}",
                        "Use the manifest of this dataset",
                    )
                category, crowd = index_of[s["category_id"]], bool(s.get("iscrowd", 0))
                segments.append(GroundTruthSegment(int(s["id"]), category, crowd, _box(s)))
            samples.append(
                Sample(
                    str(image["id"]),
                    self.root / split.images / image["file_name"],
                    self.root / split.labels / annotation["file_name"],
                    tuple(segments),
                )
            )
        return samples

    def _check_categories(self, path: Path, categories: list[dict]) -> None:
        names = {int(c["id"]): c["name"] for c in categories}
        for info in self.spec.classes:
            if names.get(info.label, info.name) != info.name:
                raise InputError(
                    f"{path}: category {info.label} is {names[info.label]!r} there and {info.name!r} in manifest "
                    f"{self.spec.name!r}",
                    "Use the manifest of this dataset",
                )


def _replaced(ids: np.ndarray, table: dict[int, int], dtype: np.dtype) -> np.ndarray:
    """The table's values in place of its keys, all ids being keys. A search in a short table beats sorting an image."""
    keys = np.array(sorted(table))
    return np.array([table[int(key)] for key in keys], dtype)[np.searchsorted(keys, ids)]


def _box(segment: dict) -> tuple[float, float, float, float] | None:
    if "bbox" not in segment:
        return None
    left, top, width, height = map(float, segment["bbox"])
    return left, top, width, height


_UNKNOWN = -2
