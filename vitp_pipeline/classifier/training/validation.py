"""Validation of a classifier on held-out training images, at points that stay the same."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from vitp_pipeline.classifier.features.patch_features import PatchEncoder, feature_logits
from vitp_pipeline.classifier.features.source import FeatureSource
from vitp_pipeline.classifier.inference import point_logits
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.training.annotations import require_same_size
from vitp_pipeline.classifier.training.data import read_pair
from vitp_pipeline.classifier.training.sampling import sample_points
from vitp_pipeline.datasets import IGNORE, Dataset, Sample
from vitp_pipeline.geometry import Size, normalize_points
from vitp_pipeline.runtime.distributed import ALONE, Distributed
from vitp_pipeline.storage.atomic_files import as_json
from vitp_pipeline.storage.run_store import RunStore

POINTS, MULTI, LEAST_REGION = 250, 16, 0.002


@dataclass(frozen=True)
class Validation:
    """Counts of correct classifications.

    Attributes:
        confusion: (K, K) int64, points by (ground-truth class, predicted class).
        regions: (3,) int64: class regions, those correct at their innermost pixel, those by their random ones.
    """

    confusion: np.ndarray
    regions: np.ndarray

    def figures(self) -> dict[str, float]:
        """Return accuracies; empty without points.

        `held_out_accuracy`, `held_out_class_accuracy`: over points, and the mean over the classes that have points.
        `held_out_regions_center`, `held_out_regions_multi`: of class regions, classified at their innermost pixel, or
        by the mean probability of 16 random ones, as masks are with the points `center` and `multi`.
        """
        figures, points = {}, self.confusion.sum(1)
        if points.sum():
            right = np.diag(self.confusion)
            figures["held_out_accuracy"] = float(right.sum() / points.sum())
            figures["held_out_class_accuracy"] = float((right[points > 0] / points[points > 0]).mean())
        if self.regions[0]:
            figures["held_out_regions_center"] = float(self.regions[1] / self.regions[0])
            figures["held_out_regions_multi"] = float(self.regions[2] / self.regions[0])
        return figures

    def save(self, store: RunStore, folder: Path, classes: Sequence[str]) -> None:
        """Write validation.json (figures, and each class's points and accuracy) and confusion.npy."""
        points, right = self.confusion.sum(1), np.diag(self.confusion)
        by_class: dict[str, Any] = {
            name: {"points": int(n), "accuracy": float(r / n) if n else None}
            for name, n, r in zip(classes, points, right, strict=True)
        }
        store.write(folder / "validation.json", as_json({**self.figures(), "classes": by_class}))
        content = io.BytesIO()
        np.save(content, self.confusion)
        store.write(folder / "confusion.npy", content.getbuffer())


class HeldOut:
    """Fixed points of held-out images. Call it with a model to validate that.

    Of each image 250 class-balanced points, and of every class region of 0.2 % of it or more the innermost pixel and 16
    random ones; all of them functions of the image's number alone. Every process reads its own images.

    Raises:
        InputError: a held-out image cannot be read.
    """

    def __init__(
        self, dataset: Dataset, samples: Sequence[Sample], size: Size, precision: str, distributed: Distributed = ALONE
    ) -> None:
        self.classes, self.precision, self.distributed = len(dataset.spec.classes), precision, distributed
        self._fixed = []
        for index, sample in list(enumerate(samples))[distributed.rank :: distributed.size]:
            labels, picture = self._open(dataset, sample, size)
            rng = np.random.default_rng([1, index])
            if (drawn := sample_points(labels, POINTS, rng)) is None:
                continue
            pixels, regions = _region_points(labels, rng)
            where = normalize_points(np.concatenate([drawn[0], pixels]), labels.shape)
            self._fixed.append((picture, torch.from_numpy(where)[None], drawn[1], regions))

    def __call__(self, model: PointViT) -> Validation:
        """Validate; all processes call it with the same weights in eval mode, and get the same counts."""
        device = model.mean.device
        confusion, regions = np.zeros((self.classes, self.classes), np.int64), np.zeros(3, np.int64)
        for picture, where, classes, truth in self._fixed:
            logits = self._logits(model, picture, where.to(device))
            np.add.at(confusion, (classes, logits[:POINTS].argmax(-1).cpu().numpy()), 1)
            probs = logits[POINTS:].softmax(-1).view(len(truth), 1 + MULTI, self.classes)
            center, multi = (p.argmax(-1).cpu().numpy() for p in (probs[:, 0], probs[:, 1:].mean(1)))
            regions += [len(truth), int((center == truth).sum()), int((multi == truth).sum())]
        return Validation(self.distributed.add(confusion), self.distributed.add(regions))

    def _open(self, dataset: Dataset, sample: Sample, size: Size) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        """Return an image's labels, and a function that gives what the model sees of it."""
        image, labels = read_pair(dataset, sample)
        picture = prepare_image(image, size)
        return labels, lambda: picture

    def _logits(self, model: PointViT, picture: Callable[[], np.ndarray], where: Tensor) -> Tensor:
        """(N, K) logits of points (1, N, 2)."""
        images = torch.from_numpy(picture())[None].to(where.device)
        return point_logits(model, images, where, precision=self.precision)[0]


class HeldOutFeatures(HeldOut):
    """The same points of the same images, for the head of a frozen backbone.

    Args:
        source: of the images.
        others: as for `HeldOut`.
    """

    def __init__(self, *others: Any, source: FeatureSource, **more: Any) -> None:
        self.source = source
        super().__init__(*others, **more)

    def _open(self, dataset: Dataset, sample: Sample, size: Size) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        original, seen = self.source.open(sample)
        labels = dataset.read_semantic(sample)
        require_same_size(original, labels, sample)
        content = seen(False)
        return labels, (lambda: content) if content.dtype == np.uint8 else (lambda: seen(False))

    def _logits(self, model: PointViT, picture: Callable[[], np.ndarray], where: Tensor) -> Tensor:
        features = torch.from_numpy(PatchEncoder(model, self.precision).features(picture())).to(where.device)
        return feature_logits(model, features, where[0], precision=self.precision)


def _region_points(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(regions·17, 2) pixels, for each region the innermost and then 16 random ones; (regions,) classes."""
    points, regions = [np.zeros((0, 2), np.int64)], []
    for k in np.unique(labels[labels != IGNORE]):
        inside = labels == k
        if inside.mean() >= LEAST_REGION:
            depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
            chosen = rng.choice(np.flatnonzero(inside), MULTI)
            pixels = np.concatenate([[depth.argmax()], chosen])
            points.append(np.stack(np.divmod(pixels, labels.shape[1]), 1))
            regions.append(int(k))
    return np.concatenate(points), np.array(regions, np.int64)
