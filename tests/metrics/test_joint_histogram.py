from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.metrics.joint_histogram import joint_counts, runs_of_pairs


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(1, 9), st.integers(1, 4))
def test_runs_count_every_pixel(seed: int, height: int, width: int, values: int) -> None:
    random = np.random.default_rng(seed)
    first, second = (random.integers(0, values, (height, width)).astype(t) for t in (np.int16, np.int32))
    if width > 1:
        second = second[:, ::-1]  # not contiguous
    runs = runs_of_pairs(first, second)
    joint = joint_counts(*runs, (values, values))
    expected = np.zeros((values, values), np.int64)
    np.add.at(expected, (first, second), 1)
    assert joint.dtype == np.int64 and (joint == expected).all()
    assert (np.repeat(runs[0], runs[2]) == first.ravel()).all() and (
        np.repeat(runs[1], runs[2]) == second.ravel()
    ).all()
    pairs = np.stack(runs[:2])
    assert (pairs[:, 1:] != pairs[:, :-1]).any(0).all()
