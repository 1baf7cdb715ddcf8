from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp_pipeline.metrics.exact_sum import IouSums

ious = st.lists(st.floats(0.5, 1.0, exclude_min=True), max_size=6)


@given(st.lists(ious, max_size=40))
def test_sums_of_any_order_are_those_of_fsum(images: list[list[float]]) -> None:
    added = np.array([sum(image) for image in images], np.float64)  # rounded as an image's own sum is
    sums = IouSums((2, 3))
    for values in np.array_split(added[::-1], 3):
        sums.add((np.ones(len(values), int), np.full(len(values), 2)), values)
    expected = np.zeros((2, 3))
    expected[1, 2] = math.fsum(added)
    assert np.array_equal(sums.totals(), expected) and np.array_equal(sums.totals(1), expected[1])


def test_many_are_not_rounded_on_the_way() -> None:
    sums, value = IouSums((1,)), 0.1 + 0.6
    for _ in range(10):
        sums.add((np.zeros(2000, int),), np.full(2000, value))
    assert sums.totals()[0] == math.fsum([value] * 20000)
    assert sums.totals()[0] != np.full(20000, value).cumsum()[-1]


@pytest.mark.parametrize("value", [-0.75, 1e-20])
def test_what_is_no_sum_of_matches_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not sums of IoUs"):
        IouSums((1,)).add((np.zeros(1, int),), np.array([value]))
