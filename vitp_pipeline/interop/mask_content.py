"""The masks and scores of one image as other tools write them, checked record by record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitp_pipeline.decoding.arrays import LARGEST, ArrayFile
from vitp_pipeline.decoding.limits import check_pixels
from vitp_pipeline.decoding.records import real_number, segmentation_rle, shown, whole_number
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size
from vitp_pipeline.interop.pseudo_logits import (
    ForeignMasks,
    logits_of_class_probabilities,
    logits_of_objectness,
    logits_of_probabilities,
    logits_of_scores,
)

MOST_MASKS = 10_000
"""Of one image."""


class Detection(NamedTuple):
    """A mask with its class and score, as a foreign file has them: unchecked.

    Attributes:
        where: names the record, after the file's name.
        label: a key of the classes.
        segmentation: as COCO writes it.
    """

    where: str
    label: Any
    score: Any
    segmentation: Any


def masks_of_detections(
    path: Path, found: Sequence[Detection], size: Size, classes: Mapping[int, int], no_object_share: float
) -> ForeignMasks:
    """Decode the detections of an image of (H, W).

    Args:
        classes: class indices by what `label` may be.
    Raises:
        InputError: the first invalid one, with the reason.
    """
    check_count(len(found), str(path))
    labels, scores, rles = [], [], []
    for where, label, score, segmentation in found:
        where = f"{path}: {where}"
        number = whole_number(label, f"{where}: its category")
        if number not in classes:
            raise InputError(
                f"{where}: category {number} is none of the manifest's", "Categories are its classes' `label`s"
            )
        labels.append(classes[number])
        scores.append(real_number(score, f"{where}: its score"))
        if not 0 <= scores[-1] <= 1:
            raise InputError(f"{where}: its score is {scores[-1]:g}, outside [0, 1]")
        rles.append(segmentation_rle(segmentation, size, where))
    logits = logits_of_scores(np.array(labels, np.int64), np.array(scores, float), len(classes), no_object_share)
    return ForeignMasks(logits, rles, size)


MASKS = ("mask_logits", "mask_probs", "masks")
CLASSES = ("class_logits", "class_probs", "labels")


def names_classes(path: Path) -> bool | None:
    """Tell if an .npz file of masks has class scores, too, by the names of its arrays; None where it has no masks or
    cannot be read.
    """
    try:
        with ArrayFile(path) as arrays:
            names = set(arrays.names)
    except InputError:
        return None
    return None if names.isdisjoint(MASKS) else not names.isdisjoint(CLASSES)


def masks_of_npz(path: Path, classes: int, no_object_share: float) -> ForeignMasks:
    """Read the masks of an image from its .npz file.

    It holds one of `mask_logits` (Q, h, w), `mask_probs` and `masks` (bool or 0 and 1), and one of `class_logits`
    (Q, K + 1), `class_probs` (Q, K) or (Q, K + 1), or `labels` (Q,) with `scores` (Q,). Of masks without class scores
    `scores` (Q,) alone are their objectness; without them that is 1.

    Raises:
        InputError: an array is missing, or its values, shape or size are invalid.
    """
    with ArrayFile(path) as arrays:
        try:
            return _masks_of_arrays(arrays, classes, no_object_share)
        except InputError as error:
            if error.message.startswith(f"{path}:"):
                raise
            raise InputError(f"{path}: {error.message}", error.hint) from error


def _masks_of_arrays(arrays: ArrayFile, classes: int, no_object_share: float) -> ForeignMasks:
    kind = _one_of(arrays.names, MASKS)
    shape = arrays.header(kind).shape
    if len(shape) != 3 or (shape[0] and not math.prod(shape)):
        raise InputError(f"{kind} are {shown(shape)}, not (Q, h, w)")
    count, size = shape[0], (shape[1], shape[2])
    check_count(count, kind)
    scores = _class_logits(arrays, count, classes, no_object_share)
    if count:
        check_pixels(size[1], size[0], f"a mask of {kind}")
    elif not all(size):
        size = (1, 1)
    if kind == "masks":
        return ForeignMasks(scores, [encode_mask(_binary(plane)) for plane in arrays.planes(kind)], size)
    if (need := 4 * math.prod(shape)) > LARGEST:
        raise InputError(
            f"{kind} of {shape} would take {need / 1e9:.1f} GB, more than {LARGEST / 1e9:.1f}",
            "Give fewer masks, or smaller ones: they may be of any resolution",
        )
    logits = np.empty((count, *size), np.float32)
    for number, plane in enumerate(arrays.planes(kind)):
        with np.errstate(over="ignore"):
            logits[number] = logits_of_probabilities(plane) if kind == "mask_probs" else plane
        if not np.isfinite(logits[number]).all():
            raise InputError(f"{kind} are not finite, or larger than float32 holds (mask {number})")
    return ForeignMasks(scores, logits, size)


def _class_logits(arrays: ArrayFile, count: int, classes: int, no_object_share: float) -> np.ndarray:
    if set(CLASSES).isdisjoint(arrays.names):
        scores = _read(arrays, "scores", [(count,)], count, classes) if "scores" in arrays.names else np.ones(count)
        return logits_of_objectness(scores, classes)
    kind = _one_of(arrays.names, CLASSES)
    if kind == "labels":
        if "scores" not in arrays.names:
            raise InputError("has labels, but no scores")
        labels, scores = (_read(arrays, name, [(count,)], count, classes) for name in ("labels", "scores"))
        return logits_of_scores(labels, scores, classes, no_object_share)
    if kind == "class_probs":
        shapes = [(count, classes + 1), (count, classes)]
        return logits_of_class_probabilities(_read(arrays, kind, shapes, count, classes), classes)
    logits = _read(arrays, kind, [(count, classes + 1)], count, classes)
    with np.errstate(over="ignore"):
        logits = logits.astype(np.float32)
    if not np.isfinite(logits).all():
        raise InputError("class_logits are not finite, or larger than float32 holds")
    return logits


def _read(arrays: ArrayFile, name: str, shapes: Sequence[tuple[int, ...]], count: int, classes: int) -> np.ndarray:
    if (shape := arrays.header(name).shape) not in shapes:
        raise InputError(f"{name} are {shown(shape)}, not {shapes[0]}, for {count} masks and {classes} classes")
    return arrays.read(name)


def _binary(plane: np.ndarray) -> np.ndarray:
    if plane.dtype != np.bool_ and not ((plane == 0) | (plane == 1)).all():
        raise InputError("masks are not 0 and 1", "Give probabilities as mask_probs, logits as mask_logits")
    return plane.astype(bool)


def check_count(count: int, where: str) -> None:
    """Raise InputError where an image has more masks than `MOST_MASKS`."""
    if count > MOST_MASKS:
        raise InputError(f"{where}: {count} masks of one image, more than {MOST_MASKS}", "Keep those of high scores")


def _one_of(there: Sequence[str], names: Sequence[str]) -> str:
    found = [name for name in names if name in there]
    if len(found) != 1:
        raise InputError(f"has {' and '.join(found) or 'none'} of {', '.join(names)}", "Exactly one is wanted")
    return found[0]
