"""Training annotations: fine masks, coarse masks, boxes, or a mixture of them (paper §3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitp_pipeline.classifier.training.augmentation import Change
from vitp_pipeline.classifier.training.sampling import sample_boxes, sample_points
from vitp_pipeline.datasets import IGNORE, Dataset, Sample
from vitp_pipeline.datasets.regions import coarse_regions
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size, normalize_boxes, normalize_points


@dataclass(frozen=True)
class Areas:
    """A map to draw points from.

    Attributes:
        numbers: (H, W) classes or, where `classes` is given, regions; IGNORE where there is none.
        classes: (S,) the class of every region, or None.
    """

    numbers: np.ndarray
    classes: np.ndarray | None = None

    def changed(self, change: Change) -> Areas:
        return Areas(change.labels(self.numbers), self.classes)

    def draw(self, count: int, rng: np.random.Generator, sampling: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(count, 2) float32 normalized points and (count,) int64 classes, or None when no pixel has a label."""
        drawn = sample_points(self.numbers, count, rng, sampling)
        if drawn is None:
            return None
        points, found = drawn
        return normalize_points(points, self.numbers.shape), found if self.classes is None else self.classes[found]


@dataclass(frozen=True)
class Boxes:
    """Boxes to classify. No points are drawn inside them: the box itself is the input (paper §3.4).

    Attributes:
        edges: (M, 4) float (top, left, bottom, right) in pixels, inside the image.
        classes: (M,) int64.
        size: (H, W) of the image.
    """

    edges: np.ndarray
    classes: np.ndarray
    size: Size

    def changed(self, change: Change) -> Boxes:
        edges, kept, size = change.boxes(self.edges, self.size)
        return Boxes(edges[kept], self.classes[kept], size)

    def draw(self, count: int, rng: np.random.Generator, sampling: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(count, 4) float32 normalized boxes and (count,) int64 classes, or None when there is no box."""
        chosen = sample_boxes(self.classes, count, rng, sampling)
        return None if chosen is None else (normalize_boxes(self.edges[chosen], self.size), self.classes[chosen])


def read_truth(
    dataset: Dataset, sample: Sample, size: Size, kind: str, sampling: str, coarse_erosion: float
) -> Areas | Boxes:
    """An image's annotation of one kind.

    Coarse masks are the split's own (`labels_coarse` in the manifest) or else eroded fine ones (`coarse_regions`).

    Args:
        size: (H, W) of the image, which the annotation must have.
        sampling: "instance-balanced" needs regions, the others classes.
    Raises:
        InputError: unreadable, or of another size than the image.
    """
    if kind == "boxes":
        edges, classes = dataset.read_boxes(sample, size)
        return Boxes(edges, classes, size)
    own = kind == "coarse" and dataset.has_coarse
    eroded = kind == "coarse" and not own
    if sampling != "instance-balanced" and not eroded:
        labels = dataset.read_semantic(sample, coarse=own)
        require_same_size(size, labels, sample, coarse=own)
        return Areas(labels)
    regions, of_regions = dataset.read_regions(sample, coarse=own)
    require_same_size(size, regions, sample, coarse=own)
    if eroded:
        regions = coarse_regions(regions, coarse_erosion)
    if sampling != "instance-balanced":
        return Areas(np.append(of_regions, IGNORE).astype(np.int16)[regions])  # −1 reads the last
    return Areas(regions, of_regions)


def require_same_size(size: Size, labels: np.ndarray, sample: Sample, coarse: bool = False) -> None:
    """Raise InputError when an image of (height, width) `size` and its (coarse) label map differ in size."""
    if size != labels.shape:
        (rows, cols), path = labels.shape, (coarse and sample.coarse) or sample.label
        raise InputError(
            f"{path}: is {cols}×{rows}, its image {sample.image.name} is {size[1]}×{size[0]}",
            "Image and label must have the same size",
        )
