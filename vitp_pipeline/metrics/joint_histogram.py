"""Counting pairs of labels in two maps by runs: maps are areas, so few pixels differ from the one before."""

from __future__ import annotations

import numpy as np


def runs_of_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two maps of one shape as runs of equal pairs, in flat order.

    Returns:
        the first map's value in each run, the second's, and the runs' lengths, (R,) each.
    """
    first, second = first.ravel(), second.ravel()
    begins = np.ones(first.size, bool)
    np.not_equal(first[1:], first[:-1], out=begins[1:])
    begins[1:] |= second[1:] != second[:-1]
    starts = np.flatnonzero(begins)
    return first[starts], second[starts], np.diff(starts, append=first.size)


def joint_counts(first: np.ndarray, second: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`shape` int64: pixels of every pair, from runs whose values are indices of the two axes."""
    pairs = first.astype(np.intp) * shape[1] + second
    # float64 holds every number of pixels
    return np.bincount(pairs, weights=lengths, minlength=shape[0] * shape[1]).astype(np.int64).reshape(shape)
