"""Make logits as a generator would give them, from another tool's masks and scores.

Results hold less than a generator's output (docs/import-proposals.md). Missing values are chosen so that the tool's own
answer stays as it is when nothing is fused: a mask covers what it covered, its best class and that class's score are
the tool's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vitp_pipeline.decoding.rle import Rle
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size

BINARY_LOGIT = 10.0
"""Logit inside a binary mask, its negative outside: probabilities of 0.99995 and 0.00005."""

HIGHEST = 0.999
"""A score above it is taken as it, or the classifier could not change the class of the mask."""

_LEAST = 1e-9  # probability in place of 0, whose logarithm is not finite


@dataclass(frozen=True)
class ForeignMasks:
    """The masks of an image, which span it whole.

    Attributes:
        class_logits: (Q, K + 1) float32, "no object" last.
        masks: (Q, h, w) float32 logits, finite; or Q run lengths where the masks are only yes or no.
        size: (h, w), any resolution.
    """

    class_logits: np.ndarray = field(repr=False)
    masks: np.ndarray | list[Rle] = field(repr=False)
    size: Size


def logits_of_binary(masks: np.ndarray) -> np.ndarray:
    """Convert (Q, h, w) bool masks to float32 logits of ±BINARY_LOGIT."""
    return np.where(masks, np.float32(BINARY_LOGIT), np.float32(-BINARY_LOGIT))


def logits_of_probabilities(masks: np.ndarray) -> np.ndarray:
    """Convert (Q, h, w) probabilities to finite float32 logits. Raises InputError outside [0, 1]."""
    masks = np.asarray(masks, np.float64)
    if masks.size and not (masks.min() >= 0 and masks.max() <= 1):
        raise InputError("mask probabilities lie outside [0, 1]", "Give logits as mask_logits")
    masks = masks.clip(1e-6, 1 - 1e-6)
    return np.asarray(np.log(masks) - np.log1p(-masks), np.float32)


def logits_of_scores(labels: np.ndarray, scores: np.ndarray, classes: int, no_object_share: float) -> np.ndarray:
    """Make class logits of masks from one label and its score each.

    The label has probability s (at most `HIGHEST`). Of the rest, 1 − s, "no object" gets `no_object_share`, the other
    classes the remainder, evenly; but no class more than s/2, so that the label stays the likeliest class, and "no
    object" what is over.

    Args:
        labels: (Q,) class indices. scores: (Q,) in [0, 1].
        no_object_share: in [0, 1].
    Returns:
        (Q, classes + 1) float32.
    Raises:
        InputError: a score or label that cannot be.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise InputError(f"{labels.shape} labels for {scores.shape} scores")
    if (odd := ~((labels >= 0) & (labels < classes) & (labels == np.floor(labels)))).any():
        raise InputError(f"label {labels[odd][0]} (mask {odd.argmax()}) is none of {classes} classes")
    if (odd := ~((scores >= 0) & (scores <= 1))).any():
        raise InputError(f"the score {scores[odd][0]} (mask {odd.argmax()}) lies outside [0, 1]")
    labels = labels.astype(np.int64)
    own = scores.clip(2 * _LEAST, HIGHEST)
    others = np.minimum((1 - own) * (1 - no_object_share) / max(1, classes - 1), own / 2) if classes > 1 else 0 * own
    probs = np.repeat(others[:, None], classes + 1, 1)
    probs[np.arange(len(labels)), labels] = own
    probs[:, -1] = 1 - own - (classes - 1) * others
    return np.asarray(np.log(probs.clip(_LEAST, 1)), np.float32)


def logits_of_objectness(objectness: np.ndarray, classes: int) -> np.ndarray:
    """Make class logits of masks without class scores: every class is equally likely, P(no object) = 1 − objectness.

    With α = 1 fusion then gives objectness · softmax(classifier).

    Args:
        objectness: (Q,) in [0, 1].
    Returns:
        (Q, classes + 1) float32, finite: 0 for every class.
    Raises:
        InputError: an objectness outside [0, 1].
    """
    objectness = np.asarray(objectness, np.float64)
    if objectness.ndim != 1:
        raise InputError(f"objectness is {objectness.shape}, not (Q,)")
    if (odd := ~((objectness >= 0) & (objectness <= 1))).any():
        raise InputError(f"the score {objectness[odd][0]} (mask {odd.argmax()}) lies outside [0, 1]")
    logits = np.zeros((len(objectness), classes + 1), np.float32)
    own, none = objectness.clip(_LEAST), (1 - objectness).clip(_LEAST)
    logits[:, -1] = np.log(none) - np.log(own) + np.log(classes)
    return logits


def logits_of_class_probabilities(probs: np.ndarray, classes: int) -> np.ndarray:
    """Convert (Q, K) probabilities, the rest to 1 being "no object", or (Q, K + 1) to (Q, K + 1) float32 logits.

    Raises:
        InputError: another number of classes, or no probabilities.
    """
    probs = np.asarray(probs, np.float64)
    if probs.ndim != 2 or probs.shape[1] not in (classes, classes + 1):
        raise InputError(f"class probabilities {probs.shape} for {classes} classes, with or without no object")
    if probs.size and not (probs.min() >= 0 and probs.sum(1).max() <= 1 + 1e-3):  # nor with NaN
        raise InputError("class probabilities are negative, or sum to more than 1", "Give logits as class_logits")
    if probs.shape[1] == classes:
        probs = np.concatenate([probs, (1 - probs.sum(1, keepdims=True)).clip(0)], 1)
    return np.asarray(np.log(probs.clip(_LEAST, None)), np.float32)
