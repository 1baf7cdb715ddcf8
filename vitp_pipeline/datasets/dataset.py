"""A split of a dataset on disk: which images it has, and their ground truth."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.images import read_labels, read_rgb, read_segment_ids
from vitp_pipeline.datasets.spec import IGNORE, DatasetSpec
from vitp_pipeline.errors import InputError, UsageError


@dataclass(frozen=True)
class GroundTruthSegment:
    """A segment of a panoptic ground truth: `id` in the id map, `category` a class index 0..K−1."""

    id: int
    category: int
    iscrowd: bool


@dataclass(frozen=True)
class Sample:
    """One image of a split. Paths are absolute; `segments` are the raw COCO segments, else None."""

    image_id: str
    image: Path
    label: Path
    segments: tuple[GroundTruthSegment, ...] | None = field(default=None, repr=False)


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

    def read_semantic(self, sample: Sample) -> np.ndarray:
        """(H, W) int16 class indices, IGNORE where there is no label; crowd segments keep their class.

        Raises:
            InputError: missing or broken label, or a value that the manifest does not know.
        """
        if self.spec.kind == "coco-panoptic":
            ids, segments = self.read_panoptic(sample)
            values, inverse = np.unique(ids, return_inverse=True)
            classes = {0: IGNORE, **{s.id: s.category for s in segments}}
            lut = np.array([classes[int(v)] for v in values], np.int16)
            return lut[inverse].reshape(ids.shape)
        labels = read_labels(sample.label)
        lut = self._label_lut
        known = np.zeros(len(lut) + 1, bool)
        known[:-1] = lut != _UNKNOWN
        clipped = np.where((labels >= 0) & (labels < len(lut)), labels, len(lut))
        if not known[clipped].all():
            odd = int(labels[~known[clipped]][0])
            raise InputError(
                f"{sample.label}: the label value {odd} is neither a class nor ignored in manifest {self.spec.name!r}",
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
        if unknown := sorted(set(np.unique(ids).tolist()) - listed):
            raise InputError(
                f"{sample.label}: segment id {unknown[0]} is not in {self.spec.splits[self.split].annotations}",
                "PNG folder and JSON must be of the same release",
            )
        return ids, list(sample.segments)

    @property
    def has_segments(self) -> bool:
        return self.spec.kind == "coco-panoptic"

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
            label = split.labels.format(stem=image.stem, dir=relative.parent.as_posix(), name=image.name)
            samples.append(Sample(image.stem, image, self.root / label))
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
                segments.append(GroundTruthSegment(int(s["id"]), index_of[s["category_id"]], bool(s.get("iscrowd", 0))))
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


_UNKNOWN = -2
