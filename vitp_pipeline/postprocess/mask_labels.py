"""Majority ground-truth class of a mask, for the upper bounds and the mask classification accuracy (paper §4.4)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.artifacts.pixel_groups import PixelGroups
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.blocks import (
    Runs,
    block_cells,
    block_pixels,
    block_values,
    image_runs,
    own_pixels,
    pooled,
)
from vitp_pipeline.postprocess.upsample import check_frame, iter_mask_logits

_VALUES = 1 << 19  # floats of a stack that is worked on at once
_PAIRS = 1 << 13  # blocks of masks whose pixels are made at once


def label_at_points(gt: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the ground-truth class at every point.

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
    """Return the most frequent class among the labeled pixels inside {logit > 0}, at image resolution.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame.
        view: how the generator saw the image.
        gt: (H0, W0) int16 class indices, IGNORE where there is no label.
    Returns:
        (Q,) int64, ties to the lowest class; IGNORE where the mask has no labeled pixel.
    Raises:
        IncompatibleError: shapes disagree.
    """
    if tuple(gt.shape) != tuple(view.original):
        raise IncompatibleError(f"the ground truth is {gt.shape}, the image was {view.original} (height, width)")
    check_frame(mask_logits, view)
    classes = int(gt.max(initial=IGNORE)) + 1
    if not classes:
        return np.full(len(mask_logits), IGNORE, np.int64)
    rows, columns = (image_runs(view, axis) for axis in (0, 1))
    if mask_logits.device.type == "cpu" and rows is not None and columns is not None:
        counts = _counts_by_blocks(mask_logits, rows, columns, gt, classes)
    else:
        counts = _counts_by_planes(mask_logits, view, gt, classes)
    return np.where(counts.any(1), counts.argmax(1), IGNORE)


def majority_label_of_groups(masks: np.ndarray, groups: PixelGroups, gt: np.ndarray) -> np.ndarray:
    """Return the same of masks whose values are known by groups of pixels.

    Args:
        masks: (Q, 1, N) floats.
        gt: as `majority_label`.
    Raises:
        IncompatibleError: shapes disagree.
    """
    if gt.shape != groups.index.shape:
        raise IncompatibleError(f"the ground truth is {gt.shape}, the image was {groups.index.shape} (height, width)")
    present = np.setdiff1d(gt, [IGNORE])
    inside, counts = masks[:, 0] > 0, np.zeros((len(masks), len(present)), np.int64)
    for place, label in enumerate(present):
        pixels = np.bincount(groups.index[gt == label], minlength=len(groups.sizes))
        counts[:, place] = [pixels[own].sum() for own in inside]
    if not len(present):
        return np.full(len(masks), IGNORE, np.int64)
    return np.where(counts.any(1), present[counts.argmax(1)], IGNORE).astype(np.int64)


def _counts_by_planes(mask_logits: Tensor, view: View, gt: np.ndarray, classes: int) -> np.ndarray:
    """(Q, K) pixels of every class inside {logit > 0}."""
    labeled, counts = gt != IGNORE, np.zeros((len(mask_logits), classes), np.int64)
    for query, plane in enumerate(iter_mask_logits(mask_logits, view)):
        counts[query] = np.bincount(gt[(plane > 0).cpu().numpy() & labeled], minlength=classes)
    return counts


def _counts_by_blocks(mask_logits: Tensor, rows: Runs, columns: Runs, gt: np.ndarray, classes: int) -> np.ndarray:
    """The same, by blocks. A block whose cells are all positive lies inside, one without a positive cell outside; only
    the pixels of the others, on a mask's outline, are computed.
    """
    width, gt = len(columns), np.where(gt == IGNORE, classes, gt)  # a last class of pixels without a label
    counts, flat = np.zeros((len(mask_logits), classes + 1), np.int64), gt.ravel()
    band = max(1, _VALUES // (max(len(mask_logits), classes + 1) * width))
    for start in range(0, len(rows), band):
        stop = min(start + band, len(rows))
        cells = block_cells(mask_logits, rows, columns, start, stop).float().contiguous()
        least, most = (pooled(cells, rows, columns, pick).flatten(1) for pick in (torch.minimum, torch.maximum))
        inside = least > 0
        held = _histograms(rows, columns, start, stop, gt, classes)
        # float64 holds any number of pixels
        counts += (inside.double() @ torch.from_numpy(held)).long().numpy()
        common = np.where((held > 0).sum(1) == 1, held.argmax(1), -1)  # the label of a block that has one
        mixed = ((most > 0) & ~inside).nonzero().numpy()
        for first in range(0, len(mixed), _PAIRS):
            query, block = mixed[first : first + _PAIRS].T
            row, column = np.divmod(block, width)
            row = row + start
            positive = (block_values(cells, rows, columns, row, column, start, query)[0] > 0).numpy()
            positive &= own_pixels(rows, columns, row, column)
            one = common[block] >= 0
            np.add.at(counts, (query[one], common[block[one]]), positive[..., one].sum((0, 1)))
            query, row, column, positive = query[~one], row[~one], column[~one], positive[..., ~one]
            labels = flat[block_pixels(rows, columns, row, column, gt.shape[1])[positive]]
            pairs = np.broadcast_to(query, positive.shape)[positive] * (classes + 1) + labels
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    return counts[:, :-1]


def _histograms(rows: Runs, columns: Runs, start: int, stop: int, gt: np.ndarray, classes: int) -> np.ndarray:
    """(blocks, K + 1) float64 labels of the pixels of every block, the last of pixels without one."""
    first, last = rows.outputs[start, 0], rows.outputs[stop - 1, -1] + 1
    blocks = (rows.run_of[first:last, None] - start) * len(columns) + columns.run_of
    pairs = blocks * (classes + 1) + gt[first:last]
    size = (stop - start) * len(columns) * (classes + 1)
    return np.bincount(pairs.ravel(), minlength=size).reshape(-1, classes + 1).astype(np.float64)
