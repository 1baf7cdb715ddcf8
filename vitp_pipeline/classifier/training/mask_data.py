"""Training batches of masks, ground-truth regions or those that a generator drew: the counterpart of
`data.PointBatches`.

A `Batch` holds as `points` what prompts the model: (B, N, P) float32, the shares of the patches that N masks cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.classifier.training.annotations import require_same_size
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.data import PointBatches, read_pair
from vitp_pipeline.classifier.training.mask_coverage import flipped, mask_coverage, region_coverage
from vitp_pipeline.classifier.training.sampling import NO_LABEL
from vitp_pipeline.datasets import IGNORE, Dataset, Sample
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size, size_of
from vitp_pipeline.postprocess.mask_labels import majority_label
from vitp_pipeline.runtime.distributed import ALONE, Distributed

if TYPE_CHECKING:
    from vitp_pipeline.artifacts.proposals import ProposalStore
    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.training.validation import Validation


class MaskBatches(PointBatches):
    """Batches of images with ground-truth masks drawn for each: N of them, with replacement.

    Masks of an image are the regions of its classes and, where a class has several segments, each of them. Sampling
    "class-balanced" draws a class, then one of its masks; "uniform" draws among all masks.

    Args:
        others: as for `PointBatches`; `points` is N.
        grid: (rows, columns) of the model's patches.
    """

    def __init__(self, *others: Any, grid: Size, **more: Any) -> None:
        super().__init__(*others, **more)
        self.grid = grid

    def _item(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        sample = self.samples[index]
        if sample.image_id in self.skipped:
            return None
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            pixels, coverage, classes = self._masks(sample, rng)
        except InputError as error:
            self.skipped[sample.image_id] = error.message
            return None
        if not len(classes):
            self.skipped[sample.image_id] = NO_LABEL
            return None
        chosen = draw_masks(classes, self.points, rng, self.sampling)
        return pixels, coverage[chosen], classes[chosen]

    def _masks(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image as the model sees it, and all its masks: (M, P) coverage, (M,) classes."""
        image, regions, classes = read_regions(self.dataset, sample)
        pixels, target = self.augmentation.apply(image, regions, self.image_size, rng)
        if (target == IGNORE).all():  # the crop or rotation lost every label
            pixels, target = Augmentation().apply(image, regions, self.image_size, rng)
        return pixels, *ground_truth_masks(target, classes, self.grid)


class GeneratedMaskBatches(MaskBatches):
    """Batches of images with masks of a generator, each with its majority ground-truth class.

    Of the augmentations only the flipping and the change of colors are made: masks are stored for whole images.

    Args:
        masks: the proposals of the images; all masks must be stored.
    """

    def __init__(self, *others: Any, masks: ProposalStore, **more: Any) -> None:
        super().__init__(*others, **more)
        self.masks = masks
        self._labels: dict[str, np.ndarray] = {}  # a majority over full-size masks takes long

    def _masks(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        image, truth = read_pair(self.dataset, sample)
        record = self.masks.read(sample.image_id)
        if sample.image_id not in self._labels:
            self._labels[sample.image_id] = majority_label(torch.from_numpy(record.masks), record.view, truth)
        classes = self._labels[sample.image_id]
        coverage = mask_coverage(record.masks, record.view, self.grid)
        if self.augmentation.flip and rng.random() < 0.5:
            image, coverage = np.ascontiguousarray(image[:, ::-1]), flipped(coverage, self.grid)
        pixels, _ = replace(self.augmentation, flip=False).apply(image, truth, self.image_size, rng)
        labeled = classes != IGNORE
        return pixels, coverage[labeled], classes[labeled]


def read_regions(dataset: Dataset, sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read an image and its labeled regions.

    Returns:
        Image (H, W, 3) uint8, regions (H, W) int16 with IGNORE where there is none, and (R,) int64 class by region:
        segments for a panoptic ground truth, else the classes themselves.
    Raises:
        InputError: unreadable, or of different size.
    """
    if not dataset.has_segments:
        image, labels = read_pair(dataset, sample)
        return image, labels, np.arange(len(dataset.spec.classes))
    image, (ids, segments) = dataset.read_image(sample), dataset.read_panoptic(sample)
    require_same_size(size_of(image), ids, sample)
    values, inverse = np.unique(ids, return_inverse=True)
    number = {0: IGNORE} | {segment.id: i for i, segment in enumerate(segments)}
    regions = np.array([number[int(v)] for v in values], np.int16)[inverse].reshape(ids.shape)
    return image, regions, np.array([segment.category for segment in segments], np.int64)


def ground_truth_masks(regions: np.ndarray, classes: np.ndarray, grid: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of a ground truth: the region of every class, and single segments where a class has several.

    Args:
        regions: (H, W) integers, IGNORE where there is none.
        classes: (R,) class by region.
        grid: (rows, columns) of the patches.
    Returns:
        (M, P) float32 coverage and (M,) int64 classes, those of a class one after another, its whole region first.
    """
    present = np.unique(regions[regions != IGNORE])
    single = region_coverage(regions, present, grid)
    coverage, labels = [], []
    for k in np.unique(classes[present]):
        own = single[classes[present] == k]
        masks = [own.sum(0, keepdims=True), own] if len(own) > 1 else [own]
        coverage += masks
        labels += [k] * sum(map(len, masks))
    return np.concatenate([single[:0], *coverage]), np.array(labels, np.int64)


def draw_masks(classes: np.ndarray, count: int, rng: np.random.Generator, how: str = "class-balanced") -> np.ndarray:
    """(count,) indices of masks, with replacement; see `MaskBatches`. classes: (M,) class by mask, M > 0."""
    if how == "uniform":
        return rng.integers(len(classes), size=count)
    order = np.argsort(classes, kind="stable")
    _, starts, counts = np.unique(classes[order], return_index=True, return_counts=True)
    drawn = rng.integers(len(counts), size=count)
    return np.take(order, starts[drawn] + rng.integers(counts[drawn]))


class HeldOutMasks:
    """The ground-truth masks of held-out images, class regions of 0.2 % of the image or more. Call it with a model to
    validate that: `held_out_accuracy` is then the mask classification accuracy.

    Every process reads its own images. Raises InputError: a held-out image cannot be read.
    """

    def __init__(
        self, dataset: Dataset, samples: Sequence[Sample], size: Size, precision: str, distributed: Distributed = ALONE
    ) -> None:
        self.dataset, self.size, self.precision, self.distributed = dataset, size, precision, distributed
        self.samples = samples[distributed.rank :: distributed.size]

    def __call__(self, model: PointViT) -> Validation:
        """Validate; all processes call it with the same weights in eval mode, and get the same counts."""
        import torch

        from vitp_pipeline.classifier.mask_prompt import mask_logits
        from vitp_pipeline.classifier.preprocess import prepare_image
        from vitp_pipeline.classifier.training.validation import LEAST_REGION, Validation

        device, classes = model.mean.device, len(self.dataset.spec.classes)
        confusion = np.zeros((classes, classes), np.int64)
        for sample in self.samples:
            image, labels = read_pair(self.dataset, sample)
            values, counts = np.unique(labels[labels != IGNORE], return_counts=True)
            regions = values[counts >= LEAST_REGION * labels.size]
            if len(regions):
                pixels = torch.from_numpy(prepare_image(image, self.size))[None].to(device)
                coverage = torch.from_numpy(region_coverage(labels, regions, model.grid))[None].to(device)
                given = mask_logits(model, pixels, coverage, precision=self.precision)[0].argmax(-1).cpu().numpy()
                np.add.at(confusion, (regions, given), 1)
        return Validation(self.distributed.add(confusion), np.zeros(3, np.int64))
