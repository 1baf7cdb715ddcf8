from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.metrics.matching import NamingAccuracy


def test_counts_claimed_and_labelled_masks_only():
    scores = torch.tensor([[0.6, 0.2], [0.1, 0.3], [0.2, 0.5], [0.0, 0.9], [0.4, 0.4]])
    void = torch.tensor([0.2, 0.6, 0.3, 0.1, 0.2])
    labels = np.array([0, 1, 0, -1, 0])
    state = NamingAccuracy(2)
    state.update(scores, void, labels)
    assert (state.right, state.total) == (2, 3)  # 0 right, 1 void, 2 wrong, 3 unlabelled, 4 a tie
    assert state.accuracy() == 2 / 3
    assert state.counts.tolist() == [[2, 1], [0, 0]]
    half = NamingAccuracy(2, threshold=0.3)
    half.update(scores.log(), void, labels)
    assert (half.right, half.total) == (3, 4)


def test_states_add_up():
    rng = np.random.default_rng(0)
    whole, parts = NamingAccuracy(4), [NamingAccuracy(4), NamingAccuracy(4)]
    for i in range(10):
        image = rng.random((9, 4)), rng.random(9), rng.integers(-1, 4, 9)
        whole.update(*image)
        parts[i % 2].update(*image)
    parts[0].merge(parts[1])
    assert (NamingAccuracy(4, counts=parts[0].counts).counts == whole.counts).all()


def test_nothing_and_bad_arguments():
    state = NamingAccuracy(3)
    state.update(np.zeros((0, 3)), np.zeros(0), np.zeros(0, int))
    assert math.isnan(state.accuracy())
    with pytest.raises(IncompatibleError):
        state.update(np.zeros((2, 4)), np.zeros(2), np.zeros(2, int))
    with pytest.raises(IncompatibleError):
        state.merge(NamingAccuracy(3, threshold=0.4))
    with pytest.raises(IncompatibleError):
        NamingAccuracy(3, counts=np.zeros((2, 2)))
