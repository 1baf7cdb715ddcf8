"""A split of a dataset on disk: its images and their ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np

from vitp_pipeline.artifacts.image_ids import TextColumn
from vitp_pipeline.datasets.annotations import GroundTruthSegment
from vitp_pipeline.datasets.identity import ImageIndex
from vitp_pipeline.datasets.images import ImageFile, open_image
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, LabelKind, Sample
from vitp_pipeline.datasets.label_kinds.truth import GroundTruthInstance, SegmentMap, Truth
from vitp_pipeline.datasets.label_values import SURVEYED, LabelReader
from vitp_pipeline.datasets.orientation import is_read_upright
from vitp_pipeline.datasets.regions import boxes_of_regions
from vitp_pipeline.datasets.samples import Samples, list_samples
from vitp_pipeline.datasets.spec import DatasetSpec
from vitp_pipeline.decoding.archives import is_file, is_folder, reading_ahead
from vitp_pipeline.decoding.remote import is_remote
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import Size


class Dataset:
    """The samples of one split, in a fixed order, and readers for them.

    Args:
        spec: the manifest.
        root: the data root: a folder, an archive, or a URL's path (`decoding.remote`).
        split: a split that the manifest names.
        limit: keep only the first `limit` images.
    Raises:
        UsageError: no such split.
        InputError: folder or annotation file missing or broken, an image id twice, no images.
    """

    def __init__(self, spec: DatasetSpec, root: Path, split: str, limit: int | None = None) -> None:
        if split not in spec.splits:
            raise UsageError(f"{spec.name} has no split {split!r}", f"It has: {', '.join(spec.splits)}")
        if not is_folder(root):
            raise InputError(f"{root}: this data root is not a folder", "Give the dataset's folder as --data-root")
        self.spec, self.root, self.split = spec, root, split
        self._all = list_samples(spec, root, split)
        self.samples: Samples = self._all[:limit]

    @property
    def kind(self) -> LabelKind:
        """Kind of its labels, looked up by name, so that the dataset can be pickled for other processes."""
        return LABEL_KINDS[self.spec.kind]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def image_ids(self) -> Sequence[str]:
        return self.samples.image_ids

    @property
    def where(self) -> str:
        """Say where its images are, for messages on others."""
        return f"in the split {self.split!r}"

    def index(self, where: object) -> ImageIndex:
        """Build an index to find images by keys of a foreign file, among all of the split, whatever `limit`."""
        return ImageIndex(self._all.image_ids, lambda place: self._all.paths(place, self.root), str(where))

    @cached_property
    def labels(self) -> LabelReader:
        """Read the label images (semantic-png)."""
        return LabelReader.of(self.spec, self._spread_labels)

    @cached_property
    def coarse_labels(self) -> LabelReader:
        return LabelReader.of(self.spec, lambda: self._spread_labels(coarse=True))

    @cached_property
    def _find(self) -> Callable[[str], int | None]:
        """Return the place of an image by its id; None where the split lacks it."""
        ids = self.image_ids
        if isinstance(ids, TextColumn):
            return ids.place
        return {image_id: number for number, image_id in enumerate(ids)}.get

    def sample(self, image_id: str) -> Sample:
        """Return the sample of an image id. Raises InputError when the split has none (any more)."""
        if (number := self._find(image_id)) is None:
            raise InputError(
                f"{self.root}: split {self.split!r} has no image with the id {image_id!r}", "Check --data-root"
            )
        return self.samples[number]

    def reading_ahead(self, image_ids: Iterable[str], labels: bool = False) -> AbstractContextManager[None]:
        """Fetch images, or their label files, from an object store before they are read, while the block runs.

        Args:
            image_ids: in the order in which they will be read. Those that the split lacks are passed over.
        """
        if not is_remote(self.root):
            return nullcontext()
        numbers = [number for image_id in image_ids if (number := self._find(image_id)) is not None]
        samples = [self.samples[number] for number in numbers]
        files = (sample.truth if self.kind.file_per_image else None for sample in samples)
        return reading_ahead(list(filter(None, files)) if labels else [sample.image for sample in samples])

    def read_image(self, sample: Sample) -> np.ndarray:
        """Read an image, (H, W, 3) uint8 RGB, rotated by EXIF to fit its labels (`orientation`). Raises InputError."""
        return self.pixels_of(sample, open_image(sample.image))

    def pixels_of(self, sample: Sample, image: ImageFile) -> np.ndarray:
        """Read the pixels of an open file as `read_image` does."""
        return image.rgb(self.is_upright(sample, image))

    def is_upright(self, sample: Sample, image: ImageFile) -> bool:
        """Tell if an image is read upright (or as stored). Raises InputError where that is ambiguous."""
        if image.orientation in (None, 1):
            return True
        size: Size | None = None
        said, own_file = self.spec.orientation, self.kind.file_per_image
        if not said and own_file and sample.truth is not None and is_file(sample.truth):
            size, said = self.kind.extent(self, sample)
        elif sample.annotation is not None and all(sample.annotation.size):
            size = sample.annotation.size
        elif own_file:
            said = said or "upright"  # without labels nothing can lie otherwise
        return is_read_upright(image, size, said)

    def read_truth(self, sample: Sample, coarse: bool = False) -> Truth:
        """Read an image's labels once, for several of the forms below. Args and errors as `read_semantic`."""
        return self.kind.read(self, sample, coarse)

    def read_semantic(self, sample: Sample, coarse: bool = False) -> np.ndarray:
        """Read class labels: (H, W) int16 class indices, IGNORE without a label; crowd segments keep their class.

        Args:
            coarse: read the coarse label file instead, where the sample has one (`has_coarse`).
        Raises:
            InputError: missing or broken label, or a value that the manifest does not know.
        """
        return self.read_truth(sample, coarse).semantic()

    def read_panoptic(self, sample: Sample) -> tuple[np.ndarray, list[GroundTruthSegment]]:
        """Read ((H, W) int32 segment ids with 0 = void, the segments). Only for panoptic label kinds.

        Raises:
            InputError: missing or broken PNG, or ids that the annotation file does not list.
        """
        return self.panoptic_of(self.read_truth(sample) if self.has_segments else None)

    def panoptic_of(self, truth: Truth | None) -> tuple[np.ndarray, list[GroundTruthSegment]]:
        """Return the same of labels that are read."""
        if not isinstance(truth, SegmentMap):
            raise InputError(f"{self.spec.name}: its labels have no segments, so there is no panoptic ground truth")
        return truth.ids, list(truth.segments)

    def read_instances(self, sample: Sample) -> list[GroundTruthInstance]:
        """Read the countable objects of an image: the thing segments of a panoptic ground truth, the objects of an
        instances file, or else the connected pieces of thing classes (`connected_regions`), which is not the same.

        Raises:
            InputError: as `read_semantic`; or objects that are boxes only.
        """
        return self.read_truth(sample).instances(self.spec.things)

    def read_regions(self, sample: Sample, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Read the objects of an image: its segments, or connected pieces of its classes where labels have no segments
        (`connected_regions`: pieces below 0.05 % of the image are no objects). Where the objects of an instances file
        overlap, the smaller one is on top.

        Returns:
            ((H, W) integer numbers 0..S−1, IGNORE elsewhere; (S,) int64 classes). A crowd is one object.
        Raises:
            InputError: as `read_semantic`.
        """
        return self.read_truth(sample, coarse).regions()

    def read_boxes(self, sample: Sample, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Read the boxes of an image's objects, things and stuff: from the annotation file, without crowds and without
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
        """Return (H, W) of an image: from its annotation file, or by reading the image."""
        if sample.annotation is not None and all(sample.annotation.size):
            return sample.annotation.size
        image = open_image(sample.image)
        return image.upright_size if self.is_upright(sample, image) else image.size

    def _spread_labels(self, coarse: bool = False) -> list[Path]:
        """Sample label files evenly from all available splits: one reading rule serves the whole dataset."""
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
        """Raise UsageError if the split has no ground truth, which `what` needs."""
        if reason := self.samples.unlabeled:
            raise UsageError(
                f"{what}: split {self.split!r} of {self.spec.name!r} has no ground truth: {reason}",
                "`vitp export-results` writes its results; measure and train on a split with labels",
            )

    @property
    def has_segments(self) -> bool:
        return self.kind.has_segments

    @property
    def has_instances(self) -> bool:
        """True if the labels separate the masks of objects."""
        return self.has_segments or (self.kind.has_objects and self.has_masks)

    @property
    def has_masks(self) -> bool:
        """True if any object of the split has more than a box."""
        annotation = self.samples[0].annotation
        return annotation is None or annotation.file.has_outlines

    @property
    def has_coarse(self) -> bool:
        """True if the split has its own coarse label files."""
        split = self.spec.splits[self.split]
        return any(self.spec.splits[part].labels_coarse for part in split.of or (self.split,))


def _annotation_file(sample: Sample) -> Path:
    assert sample.annotation is not None
    return sample.annotation.file.path
