"""A split of a dataset on disk: which images it has, and their ground truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.annotations import GroundTruthSegment
from vitp_pipeline.datasets.identity import ImageIndex
from vitp_pipeline.datasets.images import ImageFile, open_image
from vitp_pipeline.datasets.label_files import read_segment_ids
from vitp_pipeline.datasets.label_values import SURVEYED, LabelReader
from vitp_pipeline.datasets.orientation import is_read_upright
from vitp_pipeline.datasets.polygons import read_polygons
from vitp_pipeline.datasets.regions import boxes_of_regions, connected_regions, number_type
from vitp_pipeline.datasets.samples import Sample, Samples, list_samples
from vitp_pipeline.datasets.spec import IGNORE, UNKNOWN, DatasetSpec
from vitp_pipeline.decoding.archives import is_archive, is_file
from vitp_pipeline.decoding.records import segmentation_rle
from vitp_pipeline.decoding.rle import Rle, decode_mask, encode_mask, mask_area
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import Size


@dataclass(frozen=True)
class GroundTruthInstance:
    """An object of an image.

    Attributes:
        id: as in the annotation; unique in the image.
        category: class index 0..K−1.
        iscrowd: it stands for several objects.
        rle: its mask as run lengths, of (H, W); `mask` decodes it, at every call.
        area: as the annotation file says it, else the mask's pixels.
    """

    id: int
    category: int
    iscrowd: bool
    rle: Rle = field(repr=False)
    area: float

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        return decode_mask(self.rle)


class Dataset:
    """The samples of one split, in a fixed order, and readers for them.

    Args:
        spec: the manifest.
        root: the data root: a folder, or an archive.
        split: a split that the manifest names.
        limit: keep only the first `limit` images.
    Raises:
        UsageError: no such split.
        InputError: folder or annotation file missing or broken, an image id twice, no images.
    """

    def __init__(self, spec: DatasetSpec, root: Path, split: str, limit: int | None = None) -> None:
        if split not in spec.splits:
            raise UsageError(f"{spec.name} has no split {split!r}", f"It has: {', '.join(spec.splits)}")
        if not root.is_dir() and not is_archive(root):
            raise InputError(f"{root}: this data root is not a folder", "Give the dataset's folder as --data-root")
        self.spec, self.root, self.split = spec, root, split
        self._all = list_samples(spec, root, split)
        self.samples: Samples = self._all[:limit]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def image_ids(self) -> tuple[str, ...]:
        return self.samples.image_ids

    def index(self, where: object) -> ImageIndex:
        """Find images by the keys in a foreign file, among all of the split; `limit` does not matter."""
        return ImageIndex(self._all.image_ids, lambda place: self._all.paths(place, self.root), str(where))

    @cached_property
    def labels(self) -> LabelReader:
        """Read the label images (semantic-png)."""
        return LabelReader.of(self.spec, self._spread_labels)

    @cached_property
    def coarse_labels(self) -> LabelReader:
        return LabelReader.of(self.spec, lambda: self._spread_labels(coarse=True))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {image_id: number for number, image_id in enumerate(self.image_ids)}

    def sample(self, image_id: str) -> Sample:
        """The sample of an id. Raises InputError when the split has none (any more)."""
        try:
            return self.samples[self._numbers[image_id]]
        except KeyError:
            raise InputError(
                f"{self.root}: split {self.split!r} has no image with the id {image_id!r}", "Check --data-root"
            ) from None

    def read_image(self, sample: Sample) -> np.ndarray:
        """(H, W, 3) uint8 RGB, turned by its EXIF orientation as its labels lie (`orientation`). Raises InputError."""
        return self.pixels_of(sample, open_image(sample.image))

    def pixels_of(self, sample: Sample, image: ImageFile) -> np.ndarray:
        """Read the pixels of an open file as `read_image` does."""
        return image.rgb(self.is_upright(sample, image))

    def is_upright(self, sample: Sample, image: ImageFile) -> bool:
        """True if an image is read upright, False if as stored. Raises InputError where that is ambiguous."""
        if image.orientation in (None, 1):
            return True
        size, said = None, self.spec.orientation
        truth = sample.truth if self.spec.kind != "coco-instances" else None
        if not said and truth is not None and is_file(truth):
            if truth.suffix == ".json":
                size = read_polygons(truth, self.spec).shape
            else:
                label = open_image(truth, "label image")
                size, said = label.upright_size, "upright" if label.orientation else ""
        elif sample.annotation is not None and all(sample.annotation.size):
            size = sample.annotation.size
        elif self.spec.kind != "coco-instances":
            said = said or "upright"  # without labels nothing can lie otherwise
        return is_read_upright(image, size, said)

    def read_values(self, sample: Sample, coarse: bool = False) -> np.ndarray:
        """(H, W) int32 label values as the label file has them, known or not. Only for semantic-png.

        Args:
            coarse: read the coarse label file instead, where the sample has one.
        Raises:
            InputError: missing or broken, or it can be read in more than one way (`label_values`).
        """
        path, reader = sample.label, self.labels
        if coarse and sample.coarse:
            path, reader = sample.coarse, self.coarse_labels
        return read_polygons(path, self.spec) if path.suffix == ".json" else reader.read(path)

    def read_semantic(self, sample: Sample, coarse: bool = False) -> np.ndarray:
        """(H, W) int16 class indices, IGNORE where there is no label; crowd segments keep their class.

        Args:
            coarse: read the coarse label file instead, where the sample has one (`has_coarse`).
        Raises:
            InputError: missing or broken label, or a value that the manifest does not know.
        """
        if self.spec.kind == "coco-panoptic":
            ids, segments = self.read_panoptic(sample)
            return _replaced(ids, {0: IGNORE, **{s.id: s.category for s in segments}}, np.dtype(np.int16))
        if self.spec.kind == "coco-instances":
            numbers, classes = self.read_regions(sample)
            return np.asarray(np.append(classes, IGNORE).astype(np.int16)[numbers])  # −1 reads the last
        values = self.read_values(sample, coarse)
        lut = self.spec.label_lut
        known = np.append(lut != UNKNOWN, False)
        clipped = np.where((values >= 0) & (values < len(lut)), values, len(lut))
        if not known[clipped].all():
            path = sample.coarse if coarse and sample.coarse else sample.label
            odd = int(values[~known[clipped]][0])
            raise InputError(
                f"{path}: the label value {odd} is neither a class nor ignored in manifest {self.spec.name!r}",
                "Add it to `classes` or to `labels.ignore`",
            )
        return np.asarray(lut[values])

    def read_panoptic(self, sample: Sample) -> tuple[np.ndarray, list[GroundTruthSegment]]:
        """((H, W) int32 segment ids with 0 = void, the segments). Only for panoptic label kinds.

        Raises:
            InputError: missing or broken PNG, or ids that the annotation file does not list.
        """
        segments = sample.segments
        if segments is None:
            raise InputError(f"{self.spec.name}: its labels have no segments, so there is no panoptic ground truth")
        ids = read_segment_ids(sample.label, self.spec.orientation != "stored")
        listed = {s.id for s in segments} | {0}
        if len(listed) <= len(segments):
            raise InputError(
                f"{_annotation_file(sample)}: {sample.image.name} lists a segment id twice, or id 0",
                "Download the annotations again",
            )
        known = np.array(sorted(listed))
        unknown = ids[known[np.searchsorted(known, ids).clip(max=len(known) - 1)] != ids]
        if len(unknown):
            raise InputError(
                f"{sample.label}: segment id {unknown.min()} is not in {_annotation_file(sample)}",
                "PNG folder and JSON must be of the same release",
            )
        return ids, list(segments)

    def read_instances(self, sample: Sample) -> list[GroundTruthInstance]:
        """The objects of an image that can be counted: the thing segments of a panoptic ground truth, the objects of an
        instances file, or else the connected pieces of thing classes (`connected_regions`), which is not the same.

        Raises:
            InputError: as `read_semantic`; or objects that are boxes only.
        """
        if self.spec.kind == "coco-instances":
            return self._shapes(sample)
        if sample.segments is not None:
            ids, segments = self.read_panoptic(sample)
            found = ((s.id, s.category, s.iscrowd, ids == s.id) for s in segments if self.spec.things[s.category])
        else:
            numbers, classes = self.read_regions(sample)
            found = ((n + 1, k, False, numbers == n) for n, k in enumerate(classes.tolist()) if self.spec.things[k])
        rles = ((i, k, crowd, encode_mask(mask)) for i, k, crowd, mask in found)
        return [GroundTruthInstance(*about, float(mask_area(about[-1]))) for about in rles]

    def read_regions(self, sample: Sample, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The objects of an image: its segments, or the connected pieces of its classes where labels have no segments
        (`connected_regions`: pieces below 0.05 % of the image are no objects). Where the objects of an instances file
        overlap, the smaller one is seen.

        Returns:
            ((H, W) integer numbers 0..S−1, IGNORE where there is none; (S,) int64 classes). A crowd is one object.
        Raises:
            InputError: as `read_semantic`.
        """
        if self.spec.kind == "coco-instances":
            objects = self._shapes(sample)
            numbers = np.full(self.image_size(sample), IGNORE, number_type(len(objects)))
            for n in sorted(range(len(objects)), key=lambda n: (not objects[n].iscrowd, -objects[n].area)):
                numbers[objects[n].mask] = n
            return numbers, np.array([o.category for o in objects], np.int64)
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
        label = sample.label
        if sample.annotation is None:
            numbers, classes = self.read_regions(sample)
            if numbers.shape != size:
                raise InputError(f"{label}: its image {sample.image.name} has another size")
            return boxes_of_regions(numbers, len(classes)), classes
        wanted = [s for s in sample.annotation.segments if not s.iscrowd]
        if without := [s for s in wanted if s.bbox is None]:
            raise InputError(
                f"{_annotation_file(sample)}: segment {without[0].id} of {sample.image.name} has no `bbox`",
                'Train on data = ["fine"], or add the boxes',
            )
        left, top, width, height = np.array([s.bbox for s in wanted], float).reshape(-1, 4).T
        edges = np.stack([top, left, top + height, left + width], axis=1).clip(0, [*size, *size])
        some = ((edges[:, 2:] - edges[:, :2]) > 0).all(axis=1)
        return edges[some], np.array([s.category for s in wanted], np.int64)[some]

    def image_size(self, sample: Sample) -> Size:
        """(H, W) of an image: as its annotation file says it, or by reading it."""
        if sample.annotation is not None and all(sample.annotation.size):
            return sample.annotation.size
        image = open_image(sample.image)
        return image.upright_size if self.is_upright(sample, image) else image.size

    def _spread_labels(self, coarse: bool = False) -> list[Path]:
        """Label files of every split that is there, evenly spread: one rule reads all of a dataset."""
        found: list[Path] = []
        for name, split in self.spec.splits.items():
            if split.of:  # its parts have names of their own
                continue
            try:
                samples = self._all if name == self.split else list_samples(self.spec, self.root, name)
            except InputError:
                continue
            some = (samples[n] for n in range(0, len(samples), -(-len(samples) // SURVEYED)))
            paths = (sample.coarse if coarse else sample.truth for sample in some)
            found += [path for path in paths if path is not None]
        return found

    def require_truth(self, what: str) -> None:
        """Raise UsageError where the split has no ground truth, which `what` needs."""
        if reason := self.samples.unlabeled:
            raise UsageError(
                f"{what}: split {self.split!r} of {self.spec.name!r} has no ground truth: {reason}",
                "`vitp export-results` writes its results; measure and train on a split with labels",
            )

    @property
    def has_segments(self) -> bool:
        return self.spec.kind == "coco-panoptic"

    @property
    def has_instances(self) -> bool:
        """True if the labels separate the masks of objects."""
        return self.has_segments or (self.spec.kind == "coco-instances" and self.has_masks)

    @property
    def has_masks(self) -> bool:
        """True if any object of the split has more than a box."""
        annotation = self.samples[0].annotation
        return self.spec.kind != "coco-instances" or annotation is None or annotation.file.has_outlines

    @property
    def has_coarse(self) -> bool:
        """True if the split has coarse label files of its own."""
        split = self.spec.splits[self.split]
        return any(self.spec.splits[part].labels_coarse for part in split.of or (self.split,))

    def _shapes(self, sample: Sample) -> list[GroundTruthInstance]:
        if not self.has_masks:
            raise InputError(f"{sample.label}: its objects are boxes, without masks", 'Train on data = ["boxes"]')
        assert sample.annotation is not None
        size, found = self.image_size(sample), []
        for shape in sample.annotation.shapes:
            where = f"{sample.label}: annotation {shape.id} of {sample.image.name}"
            if not shape.outline:
                raise InputError(f"{where} has no `segmentation`", 'Train on data = ["boxes"], or leave it out')
            rle = segmentation_rle(shape.outline, size, where)
            area = float(mask_area(rle)) if shape.area is None else shape.area
            found.append(GroundTruthInstance(shape.id, shape.category, shape.iscrowd, rle, area))
        return found


def _annotation_file(sample: Sample) -> Path:
    assert sample.annotation is not None
    return sample.annotation.file.path


def _replaced(ids: np.ndarray, table: dict[int, int], dtype: np.dtype) -> np.ndarray:
    """The table's values in place of its keys, all ids being keys. A search in a short table beats sorting an image."""
    keys = np.array(sorted(table))
    return np.array([table[int(key)] for key in keys], dtype)[np.searchsorted(keys, ids)]
