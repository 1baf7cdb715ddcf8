"""What the ground truth calls a mask: the labels of the upper bounds (design §4) and of the naming
accuracy.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vitp_pipeline.assemble.upsample import iter_mask_logits
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View


def label_at_points(gt: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The ground truth's label at every point.

    Args:
        gt: (H0, W0) int16 class indices, IGNORE where there is no label.
        points: (Q, 2) integers, (row, col), inside the image.
    Returns:
        (Q,) int64, IGNORE where the point has no label.
    Raises:
        IncompatibleError: a point lies outside the image.
    """
    points = np.asarray(points, np.int64).reshape(-1, 2)
    if len(points) and (points.min() < 0 or (points >= np.array(gt.shape)).any()):
        raise IncompatibleError(f"a point lies outside the ground truth's {gt.shape[0]}×{gt.shape[1]} pixels")
    return gt[points[:, 0], points[:, 1]].astype(np.int64)


def majority_label(mask_logits: Tensor, view: View, gt: np.ndarray) -> np.ndarray:
    """The most frequent label among the labelled ground-truth pixels inside {logit > 0}, at image resolution.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        view: how the generator saw the image.
        gt: (H0, W0) int16 class indices, IGNORE where there is no label.
    Returns:
        (Q,) int64, ties to the lowest class; IGNORE where the mask has no labelled pixel.
    Raises:
        IncompatibleError: shapes disagree.
    """
    if tuple(gt.shape) != tuple(view.original):
        raise IncompatibleError(f"the ground truth is {gt.shape}, the image was {view.original} (height, width)")
    labels = np.full(len(mask_logits), IGNORE, np.int64)
    labelled = gt != IGNORE
    for query, plane in enumerate(iter_mask_logits(mask_logits, view)):
        counts = np.bincount(gt[(plane > 0).cpu().numpy() & labelled])
        if len(counts):
            labels[query] = counts.argmax()
    return labels
