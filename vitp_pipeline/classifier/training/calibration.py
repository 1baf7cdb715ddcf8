"""Temperature scaling: one number that makes a trained classifier as sure as it is right (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vitp_pipeline.classifier.inference import point_logits
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.training.data import read_pair
from vitp_pipeline.classifier.training.sampling import sample_points
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.geometry import normalise_points

LIMITS = 0.01, 100.0
_HALVINGS = 50


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that minimises the mean of −log softmax(logits / T)[label].

    The mean is convex in 1/T, so the sign of its slope, the mean over points of (expected logit − logit of the label),
    tells on which side the minimum lies.

    Args:
        logits: (N, K) finite floats, N > 0, of points that the classifier was not trained on.
        labels: (N,) integers in [0, K).
    Returns:
        T within `LIMITS`; a bound when the minimum lies beyond it (every point right, or no better than chance).
    """
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(1, keepdims=True)
    of_label = logits[np.arange(len(logits)), labels].mean()
    low, high = np.log(LIMITS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        weights = np.exp(logits / np.exp(middle))
        expected = ((weights * logits).sum(1) / weights.sum(1)).mean()
        # too sure at T = exp(middle): the optimum is a higher temperature
        low, high = (middle, high) if expected > of_label else (low, middle)
    return float(np.exp((low + high) / 2))


def held_out_temperature(
    model: PointViT, dataset: Dataset, held_out: Sequence[Sample], points: int, precision: str = "auto"
) -> float | None:
    """The temperature of `fit_temperature` over class-balanced ground-truth points of images kept out of training.

    Args:
        points: number drawn per image, the same ones every time.
    Returns:
        None when no image has a label.
    Raises:
        InputError: an image cannot be read.
    """
    logits, labels = [], []
    for index, sample in enumerate(held_out):
        image, truth = read_pair(dataset, sample)
        drawn = sample_points(truth, points, np.random.default_rng([1, index]))
        if drawn is None:
            continue
        device = model.mean.device
        pixels = torch.from_numpy(prepare_image(image, model.image_size))[None].to(device)
        where = torch.from_numpy(normalise_points(drawn[0], truth.shape))[None].to(device)
        logits.append(point_logits(model, pixels, where, precision=precision)[0].cpu().numpy())
        labels.append(drawn[1])
    return fit_temperature(np.concatenate(logits), np.concatenate(labels)) if logits else None
