"""Training batches for the head of a frozen backbone: features instead of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.classifier.features.patch_features import PatchEncoder
from vitp_pipeline.classifier.features.source import FeatureSource
from vitp_pipeline.classifier.training.augmentation import Augmentation, Change
from vitp_pipeline.classifier.training.data import Batch, PointBatches
from vitp_pipeline.datasets import Sample
from vitp_pipeline.geometry import Size


@dataclass(frozen=True)
class _Seen(Batch):
    """A batch whose images are still a mixture of features and pixels."""

    seen: Sequence[np.ndarray]


class FeatureBatches(PointBatches):
    """Batches of the same points as `PointBatches`, with features (B, F, P, D) float16 in the place of images.

    Args:
        others: as for `PointBatches`; of the augmentations only flipping.
        encoder: of the model that is trained; it works in the main thread, on images whose features are not stored.
        source: of the images.
    """

    def __init__(self, *others: Any, encoder: PatchEncoder, source: FeatureSource, **more: Any) -> None:
        super().__init__(*others, **more)
        self.encoder, self.source = encoder, source

    def _open(self, sample: Sample) -> tuple[Size, Callable[[Change], np.ndarray]]:
        size, seen = self.source.open(sample)
        return size, lambda change: seen(change.flip)

    def _collated(self, images: Sequence[np.ndarray], points: Tensor, classes: Tensor) -> Batch:
        return _Seen(torch.empty(0), points, classes, images)

    def _ready(self, batch: Batch) -> Batch:
        assert isinstance(batch, _Seen), "made by `_collated`"
        features = np.stack([self.encoder.features(seen) for seen in batch.seen])
        return Batch(torch.from_numpy(features), batch.points, batch.classes)


def only_flips(augmentation: Augmentation) -> bool:
    """Tell if an augmentation leaves an image as it is or mirrors it."""
    return augmentation == Augmentation(flip=augmentation.flip)
