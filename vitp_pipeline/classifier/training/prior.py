"""Class frequencies among training points; `class_prior` corrects the logits by them."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.classifier.training.annotations import Boxes, read_truth
from vitp_pipeline.classifier.training.data import PointBatches
from vitp_pipeline.datasets import IGNORE, Dataset, Sample
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import size_of
from vitp_pipeline.runtime.distributed import ALONE, Distributed


def log_prior(batches: PointBatches, distributed: Distributed = ALONE) -> np.ndarray:
    """(K,) float32: log of each class's share of class-balanced points, add-one smoothed, mean 0.

    The N points of an image are shared equally among the classes present in its annotation; kinds of annotation count
    by their share of the mixture. Every process reads a part of the images.
    """
    dataset, mixture = batches.dataset, batches.mixture
    counts = np.zeros(len(dataset.spec.classes))
    for sample in batches.samples[distributed.rank :: distributed.size]:
        for kind, share in zip(mixture.kinds, mixture.shares, strict=True):
            try:
                present = _present(dataset, sample, kind, batches.coarse_erosion)
            except InputError:
                continue  # reported when training reads it
            counts[present] += share * batches.points / max(1, len(present))
    shares = 1 + distributed.add(counts)
    log = np.log(shares / shares.sum())
    return np.asarray(log - log.mean(), np.float32)


def _present(dataset: Dataset, sample: Sample, kind: str, coarse_erosion: float) -> np.ndarray:
    """The classes of an image's annotation of one kind, ascending."""
    if kind == "fine":
        found = dataset.read_semantic(sample)
    else:
        size = size_of(dataset.read_image(sample))
        truth = read_truth(dataset, sample, size, kind, "class-balanced", coarse_erosion)
        found = truth.classes if isinstance(truth, Boxes) else truth.numbers
    return np.setdiff1d(found, [IGNORE])
