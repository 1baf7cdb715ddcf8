from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from vitp_pipeline.classifier.training.sampling import sample_points
from vitp_pipeline.datasets import IGNORE


def labels() -> np.ndarray:
    """Classes 0, 4 and 7 with 1, 10 and 69 of 100 pixels; the rest is ignored."""
    flat = np.full(100, IGNORE, np.int16)
    flat[:1], flat[1:11], flat[11:80] = 0, 4, 7
    return np.random.default_rng(0).permutation(flat).reshape(5, 20)


@pytest.mark.parametrize("how", ["class-balanced", "uniform"])
def test_points_carry_their_own_label(how: str) -> None:
    points, classes = sample_points(labels(), 500, np.random.default_rng(1), how)
    assert points.shape == (500, 2) and classes.shape == (500,) and classes.dtype == np.int64
    assert np.array_equal(labels()[points[:, 0], points[:, 1]], classes)
    assert (classes != IGNORE).all()


def test_class_balanced_statistics() -> None:
    points, classes = sample_points(labels(), 30_000, np.random.default_rng(2))
    seen = np.bincount(classes, minlength=8)
    assert set(np.flatnonzero(seen)) == {0, 4, 7}
    assert chisquare(seen[[0, 4, 7]]).pvalue > 0.01  # uniform over the classes present
    for k in (4, 7):  # and over the pixels of a class
        pixels = points[classes == k] @ np.array([20, 1])
        counts = np.bincount(pixels, minlength=100)[labels().ravel() == k]
        assert chisquare(counts).pvalue > 0.01 and (counts > 0).all()


def test_uniform_statistics() -> None:
    points, _ = sample_points(labels(), 30_000, np.random.default_rng(3), "uniform")
    counts = np.bincount(points @ np.array([20, 1]), minlength=100)
    assert chisquare(counts[labels().ravel() != IGNORE]).pvalue > 0.01


@pytest.mark.parametrize("how", ["class-balanced", "uniform"])
def test_nothing_to_draw_from_and_the_same_draw_again(how: str) -> None:
    assert sample_points(np.full((3, 4), IGNORE, np.int16), 5, np.random.default_rng(0), how) is None
    one = np.full((3, 4), IGNORE, np.int16)
    one[2, 1] = 9
    points, classes = sample_points(one, 5, np.random.default_rng(0), how)
    assert points.tolist() == [[2, 1]] * 5 and classes.tolist() == [9] * 5
    a = sample_points(labels(), 50, np.random.default_rng(4), how)
    b = sample_points(labels(), 50, np.random.default_rng(4), how)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def test_many_regions_are_drawn_alike(count: int = 1000) -> None:
    numbers = np.random.default_rng(5).permutation(np.arange(-count, count).clip(min=IGNORE)).astype(np.int16)
    points, found = sample_points(numbers.reshape(2, count), 40 * count, np.random.default_rng(6), "instance-balanced")
    assert np.array_equal(numbers.reshape(2, count)[points[:, 0], points[:, 1]], found)
    assert chisquare(np.bincount(found, minlength=count)).pvalue > 0.01
