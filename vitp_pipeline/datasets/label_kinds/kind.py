"""Label kinds: their interface and their registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from vitp_pipeline.datasets.annotations import Annotation, Annotations, GroundTruthSegment
from vitp_pipeline.datasets.label_kinds.truth import Truth
from vitp_pipeline.datasets.label_values import LabelReader
from vitp_pipeline.datasets.spec import IGNORE, DatasetSpec
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size
from vitp_pipeline.validation.registry import Registry


@dataclass(frozen=True)
class Sample:
    """One image of a split.

    Attributes:
        image: its file. Paths start with the data root; one that goes through an archive names a file in it.
        truth: its label file; the annotation file where objects are not in images; None where a split is `unlabeled`.
        coarse: its coarse label file, if the manifest names such files.
        annotation: what the annotation file says about it (COCO kinds).
    """

    image_id: str
    image: Path
    truth: Path | None
    coarse: Path | None = None
    annotation: Annotation | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> Path:
        """Path of the ground truth, `truth`. Raises InputError if there is none."""
        if self.truth is None:
            raise InputError(f"{self.image}: its split has no ground truth")
        return self.truth

    @property
    def segments(self) -> tuple[GroundTruthSegment, ...] | None:
        """Segments or objects in the annotation file; None without one."""
        return None if self.annotation is None else self.annotation.segments


@dataclass
class Finding:
    """Properties of one image and its labels.

    Attributes:
        size: (H, W) as it is read, or None when the image cannot be.
        pixels: digest of the image's pixels (`diagnostics.duplicates`); None when it cannot be read.
        labeled: whether there is ground truth to look at.
        image_mode: PIL's mode, with the bits of a sample where they are not 8.
        label_mode: how its labels are stored. reading: how they are read: `stored`, `shown`, `refused`, or "".
        palette: the colors of a label image that has some.
        orientation, label_orientation: as EXIF numbers them, where a file states another than 1.
        turned: what is done about `orientation`: `upright`, `stored` or `refused`.
        values: pixels by label value (semantic-png), or by category id.
        objects: objects by category id (COCO kinds).
        void: pixels without a label (semantic-png has its ignored values among `values` instead).
        broken: (file, reason) for what stops the image from being used.
        odd: faults that do not prevent its use.
    """

    image_id: str
    size: Size | None = None
    pixels: int | None = None
    labeled: bool = True
    image_mode: str = ""
    label_mode: str = ""
    reading: str = ""
    palette: bytes = b""
    orientation: int = 1
    turned: str = ""
    label_orientation: int = 1
    values: Counter[int] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    void: int = 0
    broken: list[tuple[Path, str]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def require_size(self, path: Path, labels: Size) -> None:
        """Note that a label file has another size than its image."""
        if self.size is not None and self.size != labels:
            (rows, cols), (height, width) = labels, self.size
            self.broken.append((path, f"{path}: is {cols}×{rows}, its image is {width}×{height}"))

    def require_listed_size(self, sample: Sample) -> None:
        """Note that the annotation file says another size than the image has."""
        listed = sample.annotation.size if sample.annotation is not None else (0, 0)
        if self.size is not None and all(listed) and listed != self.size:
            (rows, cols), (height, width) = listed, self.size
            reason = f"{sample.image}: is {width}×{height}, the annotation file says {cols}×{rows}"
            self.broken.append((sample.image, reason))


class Split(Protocol):
    """The part of a `Dataset` that kinds read from."""

    spec: DatasetSpec

    @property
    def labels(self) -> LabelReader: ...
    @property
    def coarse_labels(self) -> LabelReader: ...
    @property
    def has_masks(self) -> bool: ...
    def image_size(self, sample: Sample) -> Size: ...


def look_at_truth(dataset: Split, sample: Sample, found: Finding) -> None:
    """Record the classes in a label map, for any kind. Raises InputError when the ground truth cannot be read."""
    labels = LABEL_KINDS[dataset.spec.kind].read(dataset, sample, False).semantic()
    found.require_size(sample.label, (labels.shape[0], labels.shape[1]))
    classes, counts = np.unique(labels[labels != IGNORE], return_counts=True)
    values = dataset.spec.label_values(classes)
    found.values.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    found.void = int((labels == IGNORE).sum())


def extent_of_truth(dataset: Split, sample: Sample) -> tuple[Size, str]:
    """Read the ground truth to get its size."""
    return LABEL_KINDS[dataset.spec.kind].read(dataset, sample, False).size, ""


@dataclass(frozen=True)
class LabelKind:
    """A way to read ground truth.

    Attributes:
        read: the truth of a sample; True asks for its coarse labels, where it has some. Raises InputError when they are
            missing or broken, or have a value that the manifest does not know.
        look: for `vitp check-dataset`: puts what the labels are like into a finding. Raises InputError, too.
        extent: (H, W) of a label file, and "upright" where the file says so, else "": for images that EXIF turns.
        annotations: reads the annotation file that lists a split's images. None: images are found by their names.
        file_per_image: whether labels lie in a file an image.
        has_segments: whether `read` gives a `SegmentMap`: what panoptic quality needs.
        has_objects: whether labels list objects that may overlap.
        largest: label value.
        by_color: whether the manifest's colors say which pixels are a class: every class needs one of its own.
    """

    read: Callable[[Split, Sample, bool], Truth]
    look: Callable[[Split, Sample, Finding], None] = look_at_truth
    extent: Callable[[Split, Sample], tuple[Size, str]] = extent_of_truth
    annotations: type[Annotations] | None = None
    file_per_image: bool = True
    has_segments: bool = False
    has_objects: bool = False
    largest: int = 2**31 - 1
    by_color: bool = False


LABEL_KINDS: Registry[LabelKind] = Registry(
    "label kind",
    "vitp_pipeline.datasets.label_kinds.semantic_png",
    "vitp_pipeline.datasets.label_kinds.color_png",
    "vitp_pipeline.datasets.label_kinds.coco_panoptic",
    "vitp_pipeline.datasets.label_kinds.coco_instances",
    "vitp_pipeline.datasets.label_kinds.label_studio",
)
