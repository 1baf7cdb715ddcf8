"""Semantic maps of one view: S_k(x) = Σ_q p_qk · sigmoid(M_q(x)) over all queries, unfiltered, and its argmax.

`average` makes them from several views.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.label_bounds import bounded_label_maps
from vitp_pipeline.postprocess.resize import lerp, resize_band
from vitp_pipeline.postprocess.upsample import (
    check_frame,
    check_protocol,
    image_logit_band,
    mask_logits_at_image,
    mask_logits_at_resized,
    resize_planes,
    resized_band,
)

_CACHE_PIXELS = 4096  # of a band on a CPU: the masks and scores of that many pixels stay in its caches


def semantic_scores(mask_logits: Tensor, probs: Tensor, view: View, protocol: str) -> Tensor:
    """Class scores on the original image, in the protocol's order of operations.

    `mmseg1` (mmsegmentation's Mask2FormerHead.predict and postprocess_result): sigmoid in the padded frame,
    sum over queries, crop, then resize the K score maps. `mmseg0` (mmsegmentation 0.x as InternImage
    has it): sigmoid and sum at mask resolution, then resize. `mmdet`, `d2`: resize the logits, sigmoid, sum.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        probs: (A, Q, K) class probabilities of the queries, one set per α.
        view: how the generator saw the image: whole and upright.
        protocol: one of `config.choices.PROTOCOLS`.
    Returns:
        (A, K, H0, W0) float32. Holds everything whole; `semantic_label_maps` does not.
    Raises:
        UsageError: unknown protocol.
        IncompatibleError: shapes disagree.
    """
    check_whole(mask_logits, probs, view, protocol)
    if protocol == "mmseg0":
        masks = mask_logits.float().sigmoid()
    else:  # sigmoid is pointwise, so cropping may come before it
        early = protocol == "mmseg1"
        masks = (mask_logits_at_resized if early else mask_logits_at_image)(mask_logits, view).sigmoid()
    alphas, queries, classes = probs.shape
    weights = probs.to(masks).transpose(1, 2).reshape(alphas * classes, queries)
    scores = (weights @ masks.flatten(1)).reshape(-1, *masks.shape[1:])
    if protocol == "mmseg0":
        scores = resize_planes(scores, view.padded)[:, : view.resized[0], : view.resized[1]]
    return resize_planes(scores, view.original).reshape(alphas, classes, *view.original)


def semantic_label_maps(
    mask_logits: Tensor, probs: Tensor, view: View, protocol: str, budget_bytes: int = 256 << 20
) -> np.ndarray:
    """The argmax over classes of `semantic_scores`; ties to the lowest class.

    Equal to the argmax of the whole scores except where two classes differ by float rounding. On a CPU most pixels are
    labeled from bounds of the scores (`postprocess.label_bounds`); otherwise scores are made in bands of rows.

    Args:
        mask_logits, probs, view, protocol: as `semantic_scores`; masks may be float16.
        budget_bytes: limit for temporaries, beyond the arguments and the result; at least one row is made
            at a time.
    Returns:
        (A, H0, W0) int16 class indices; IGNORE all over where there is no mask, or none has a class (`has_class`).
    Raises:
        UsageError, IncompatibleError: as `semantic_scores`.
    """
    check_whole(mask_logits, probs, view, protocol)
    some = has_class(probs)
    if not some.any():
        return np.full((len(probs), *view.original), IGNORE, np.int16)
    labels = None
    if mask_logits.device.type == "cpu":
        labels = bounded_label_maps(mask_logits, probs, view, protocol)
    if labels is None:
        labels = _banded_label_maps(mask_logits, probs, view, protocol, budget_bytes)
    labels[~some] = IGNORE
    return labels


def has_class(probs: Tensor) -> np.ndarray:
    """(A, Q, K) class probabilities → (A,) bool: any is above 0, so that a map is defined."""
    return (probs.flatten(1) > 0).any(1).cpu().numpy()


def _banded_label_maps(mask_logits: Tensor, probs: Tensor, view: View, protocol: str, budget_bytes: int) -> np.ndarray:
    height, width = view.original
    labels = np.empty((len(probs), height, width), np.int16)
    probs = probs.to(mask_logits.device, torch.float32)
    rows = band_rows(mask_logits, probs, view, budget_bytes)
    resize_scores = protocol == "mmseg0" or (protocol == "mmseg1" and view.resized != view.original)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        if resize_scores:
            band = _resized_score_labels(mask_logits, probs, view, protocol, start, stop)
        else:
            masks = image_logit_band(mask_logits, view, start, stop).sigmoid_().flatten(1).T
            band = (argmax(masks @ p) for p in probs)
        for alpha, label in enumerate(band):
            labels[alpha, start:stop] = label.reshape(stop - start, width)
    return labels


def _resized_score_labels(
    mask_logits: Tensor, probs: Tensor, view: View, protocol: str, start: int, stop: int
) -> Iterator[np.ndarray]:
    """The band's labels, α by α, where score maps are resized (`mmseg0`, `mmseg1`)."""
    lerp_down = lerp(view.resized[0], view.original[0])
    first, last = lerp_down.source(start, stop)
    for scores in seen_scores(mask_logits, probs, view, protocol, first, last):
        scores = resize_band(scores, first, lerp_down, start, stop, view.original[1])
        yield argmax(scores.flatten(1).T.contiguous())


def seen_scores(
    mask_logits: Tensor, probs: Tensor, view: View, protocol: str, start: int, stop: int
) -> Iterator[Tensor]:
    """Class scores of rows of what a view sees of the resized image, for the protocols that make scores there.

    Args:
        probs: (A, Q, K) float32 on the device of the masks.
        protocol: "mmseg0" has the sigmoid at mask resolution; all others are taken as `mmseg1`.
        start, stop: rows of the window, or of the resized image.
    Yields:
        for each α (K, stop − start, width) float32.
    """
    if protocol != "mmseg0":
        masks = resized_band(mask_logits, view, start, stop).sigmoid_()
        for p in probs:
            yield (p.T @ masks.flatten(1)).reshape(-1, *masks.shape[1:])
        return
    rows = lerp(view.mask[0], view.padded[0])
    first, last = rows.source(start, stop)
    masks = mask_logits[:, first:last].float().sigmoid()
    for p in probs:
        scores = (p.T @ masks.flatten(1)).reshape(-1, *masks.shape[1:])
        yield resize_band(scores, first, rows, start, stop, view.padded[1])[..., : view.seen[3]]


def argmax(scores: Tensor) -> np.ndarray:
    """(P, K) → (P,) first largest; on a CPU numpy is several times faster than torch for contiguous rows."""
    return scores.numpy().argmax(1) if scores.device.type == "cpu" else scores.argmax(1).cpu().numpy()


def band_rows(mask_logits: Tensor, probs: Tensor, view: View, budget_bytes: int) -> int:
    """Rows of the original per band, so that the stacks alive at once stay within the budget."""
    queries, classes = probs.shape[1:]
    wide = max(view.padded[1], view.original[1])
    # Resizing keeps about four stacks alive (two neighbors, their blend, the result); a band of the original
    # reads Hr/H0 times as many resized rows.
    per_row = 4 * 4 * (queries + classes) * wide * max(1.0, view.resized[0] / view.original[0])
    rows = int(budget_bytes / per_row)
    if mask_logits.device.type == "cpu":
        rows = min(rows, -(-_CACHE_PIXELS // view.original[1]))
    return max(1, rows)


def check_whole(mask_logits: Tensor, probs: Tensor, view: View, protocol: str) -> None:
    """Raise as `check_scored`, and IncompatibleError for a window or a flipped view."""
    check_scored(mask_logits, probs, view, protocol)
    if not view.whole:
        raise IncompatibleError("a window or a flipped view is not an image", "Use postprocess.view_average for views")


def check_scored(mask_logits: Tensor, probs: Tensor, view: View, protocol: str) -> None:
    """Raise UsageError for an unknown protocol, IncompatibleError when masks, probabilities and view disagree."""
    check_protocol(protocol)
    check_frame(mask_logits, view)
    if probs.ndim != 3 or probs.shape[1] != len(mask_logits):
        raise IncompatibleError(f"class probabilities {tuple(probs.shape)} (A, Q, K) for {len(mask_logits)} masks")
