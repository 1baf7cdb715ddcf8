from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.mask_labels import label_at_points, majority_label
from vitp_pipeline.postprocess.upsample import mask_logits_at_image

VIEW = View((21, 30), (24, 30), (32, 32), (8, 8))


def test_majority_against_a_loop():
    rng = np.random.default_rng(0)
    gt = rng.integers(-1, 4, VIEW.original).astype(np.int16)
    gt[:10, :10] = -1
    masks = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    masks[3] = -1  # no positive pixel
    masks[4] = -1
    masks[4, 0, 0] = 1  # nothing but unlabeled pixels
    labels = majority_label(masks, VIEW, gt)
    assert labels.shape == (8,) and labels.dtype == np.int64
    inside = (mask_logits_at_image(masks, VIEW) > 0).numpy()
    for query in range(8):
        counts = Counter(int(v) for v in gt[inside[query]] if v >= 0)
        best = min(counts, key=lambda k: (-counts[k], k)) if counts else -1
        assert labels[query] == best
    assert labels[3] == labels[4] == -1 and (labels[[0, 1, 2]] >= 0).all()


def test_ties_go_to_the_lowest_class():
    view = View((1, 2), (1, 2), (1, 2), (1, 2))
    assert majority_label(torch.ones(1, 1, 2), view, np.array([[3, 1]], np.int16)).tolist() == [1]


def test_label_at_points():
    gt = np.arange(12, dtype=np.int16).reshape(3, 4)
    gt[1, 2] = -1
    assert label_at_points(gt, np.array([[0, 0], [2, 3], [1, 2]], np.int32)).tolist() == [0, 11, -1]
    assert label_at_points(gt, np.zeros((0, 2), np.int32)).shape == (0,)


def test_bad_arguments():
    gt = np.zeros((3, 4), np.int16)
    for point in ([3, 0], [0, 4], [-1, 0]):
        with pytest.raises(IncompatibleError):
            label_at_points(gt, np.array([point]))
    with pytest.raises(IncompatibleError):
        majority_label(torch.zeros(1, 8, 8), VIEW, gt)
