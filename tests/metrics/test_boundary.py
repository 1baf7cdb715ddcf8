from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.metrics.boundary import boundary_areas, boundary_width, label_boundaries, mask_boundary


def slow_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of the mask with a pixel outside it, or outside the image, within `width` steps."""
    out = np.zeros_like(mask)
    for r, c in np.argwhere(mask):
        for dr in range(-width, width + 1):
            for dc in range(-width, width + 1):
                y, x = r + dr, c + dc
                inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
                out[r, c] |= not inside or not mask[y, x]
    return out


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_against_a_slow_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, width = tuple(rng.integers(1, 12, 2)), int(rng.integers(1, 4))
    coarse = rng.integers(IGNORE, 3, (4, 4))
    labels = np.kron(coarse, np.ones((3, 3), int))[: size[0], : size[1]]
    whole = np.zeros(size, bool)
    for k in range(IGNORE, 3):
        boundary = slow_boundary(labels == k, width)
        assert np.array_equal(mask_boundary(labels == k, width), boundary)
        whole |= boundary
    assert np.array_equal(label_boundaries(labels, width), whole)
    assert not mask_boundary(np.zeros(size, bool), width).any()

    guess = np.where(rng.random(size) < 0.2, rng.integers(0, 3, size), labels.clip(0))
    areas = boundary_areas(guess, labels, width, 3)
    for k in range(3):
        ours = slow_boundary(guess == k, width) & (labels != IGNORE)
        theirs = slow_boundary(labels == k, width)
        assert areas[k].tolist() == [(ours & theirs).sum(), theirs.sum(), ours.sum()]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_against_opencv_as_the_reference_code_uses_it(seed: int) -> None:
    import cv2

    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(20, 90, 2))
    mask = np.kron(rng.random((9, 9)) < 0.5, np.ones((10, 10), bool))[: size[0], : size[1]]
    width = boundary_width(size, 0.05)
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    assert np.array_equal(mask_boundary(mask, width), mask & (eroded == 0))


@pytest.mark.parametrize(("size", "width"), [((480, 640), 16), ((1024, 2048), 46), ((3, 4), 1), ((30, 40), 1)])
def test_the_width_is_two_percent_of_the_diagonal(size: tuple[int, int], width: int) -> None:
    assert boundary_width(size) == width
