"""Training batches. Every random choice is a function of (seed, epoch, image), so a resumed training
needs only the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.classifier.training.annotations import read_truth, require_same_size
from vitp_pipeline.classifier.training.augmentation import Augmentation, Change
from vitp_pipeline.classifier.training.readable import require_readable
from vitp_pipeline.classifier.training.sampling import NO_LABEL
from vitp_pipeline.config.mixture import Mixture
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size, size_of
from vitp_pipeline.runtime.distributed import ALONE, Distributed


@dataclass(frozen=True)
class Batch:
    """images (B, 3, H, W) uint8 or, of `FeatureBatches`, (B, F, P, D) float16; points (B, N, 2) or, where boxes may be
    among them, (B, N, 4) float; classes (B, N) int64.
    """

    images: Tensor
    points: Tensor
    classes: Tensor


class PointBatches:
    """Batches of images with freshly drawn ground-truth points or boxes.

    Args:
        samples: the images to train on.
        image_size: (height, width) of the classifier's input.
        points: N per image.
        mixture: the kinds of annotation; one is drawn for each image in every epoch.
        coarse_erosion: of coarse masks made from fine ones (`coarse_regions`).
        distributed: of each batch every process reads its own, nearly equal part.
    Attributes:
        skipped: reason by image id, for images that could not be read or have no label.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Sequence[Sample],
        image_size: Size,
        points: int,
        batch_size: int,
        augmentation: Augmentation,
        sampling: str = "class-balanced",
        seed: int = 0,
        workers: int = 1,
        mixture: Mixture | None = None,
        coarse_erosion: float = 0.2,
        distributed: Distributed = ALONE,
    ) -> None:
        self.distributed = distributed
        self.dataset, self.samples, self.image_size = dataset, list(samples), image_size
        self.points, self.batch_size, self.augmentation = points, batch_size, augmentation
        self.sampling, self.seed, self.workers = sampling, seed, workers
        self.mixture, self.coarse_erosion = mixture or Mixture(), coarse_erosion
        self.skipped: dict[str, str] = {}

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def from_step(self, first: int, last: int) -> Iterator[tuple[int, Batch | None]]:
        """(step, batch) for first ≤ step < last, read ahead by threads; None when no image of a batch was usable."""
        depth = max(1, self.workers) + 1
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            ahead = [(step, pool.submit(self._batch, step)) for step in range(first, min(first + depth, last))]
            for step in range(first, last):
                number, future = ahead.pop(0)
                if step + depth < last:
                    ahead.append((step + depth, pool.submit(self._batch, step + depth)))
                batch = future.result()
                yield number, None if batch is None else self._ready(batch)

    def _ready(self, batch: Batch) -> Batch:
        """Finish a batch in the main thread."""
        return batch

    def require_readable(self) -> None:
        """Raise UnreadableError when too many images of those seen so far could not be read."""
        require_readable(self.skipped, len(self.samples), self.dataset)

    def _batch(self, step: int) -> Batch | None:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        chosen = np.array_split(chosen, self.distributed.size)[self.distributed.rank]
        items = [item for index in chosen if (item := self._item(int(index), epoch)) is not None]
        if not items:
            return None
        images, *others = zip(*items, strict=True)
        points, classes = (torch.from_numpy(np.stack(column)) for column in others)
        return self._collated(images, points, classes)

    def _collated(self, images: Sequence[np.ndarray], points: Tensor, classes: Tensor) -> Batch:
        return Batch(torch.from_numpy(np.stack(images)), points, classes)

    def _item(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        sample = self.samples[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            size, changed = self._open(sample)
            for kind in self.mixture.order(rng):
                truth = read_truth(self.dataset, sample, size, kind, self.sampling, self.coarse_erosion)
                for augmentation in (self.augmentation, Augmentation()):  # a crop or rotation may lose every label
                    change = augmentation.draw(size, rng)
                    drawn = truth.changed(change).draw(self.points, rng, self.sampling)
                    if drawn is not None:
                        points, classes = drawn
                        if self.mixture.has_boxes:
                            points = np.pad(points, ((0, 0), (0, 4 - points.shape[1])))
                        return changed(change), points, classes
        except InputError as error:
            self.skipped[sample.image_id] = error.message
            return None
        self.skipped[sample.image_id] = NO_LABEL
        return None

    def _open(self, sample: Sample) -> tuple[Size, Callable[[Change], np.ndarray]]:
        """Return an image's (height, width), and a function that makes what the model sees of it after a change."""
        image = self.dataset.read_image(sample)
        return size_of(image), lambda change: change.picture(image, self.image_size)


def read_pair(dataset: Dataset, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and labels (H, W) int16. Raises InputError when unreadable or of different size."""
    image, labels = dataset.read_image(sample), dataset.read_semantic(sample)
    require_same_size(size_of(image), labels, sample)
    return image, labels
