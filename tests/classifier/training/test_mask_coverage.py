from __future__ import annotations

import numpy as np
import pytest
import torch

from vitp_pipeline.classifier.training.mask_coverage import cell_shares, flipped, mask_coverage, region_coverage
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.upsample import mask_logits_at_image


def by_pixels(plane: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of each patch: every pixel repeated until patches and pixels have a common grid, then counted."""
    fine = plane.repeat(grid[0], 0).repeat(grid[1], 1)  # patch (i, j) is now a block of plane.shape
    rows, columns = plane.shape
    shares = [
        fine[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean()
        for i in range(grid[0])
        for j in range(grid[1])
    ]
    return np.array(shares)


@pytest.mark.parametrize("size", [(30, 42), (7, 5), (3, 4), (48, 36)])
def test_region_coverage_equals_a_loop(size: tuple[int, int]) -> None:
    regions = np.random.default_rng(0).integers(-1, 3, size)
    got = region_coverage(regions, [0, 2, 7], (5, 6))
    assert got.dtype == np.float32 and got.shape == (3, 30)
    for number, values in zip([0, 2, 7], got, strict=True):
        np.testing.assert_allclose(values, by_pixels((regions == number).astype(float), (5, 6)), atol=1e-6)


def test_shares_of_everything_sum_to_one() -> None:
    regions = np.random.default_rng(1).integers(0, 4, (31, 17))
    np.testing.assert_allclose(region_coverage(regions, range(4), (4, 3)).sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(cell_shares(20, 13.4, 5).sum(1), 1, atol=1e-6)
    assert (cell_shares(20, 13.4, 5)[:, 14:] == 0).all()


def test_mask_coverage_equals_a_loop_where_the_frames_nest() -> None:
    """Original 60×80, resized to half, padded to 40×48; masks at a quarter of that: 30×40 of 40×48 hold the image."""
    view = View(original=(60, 80), resized=(30, 40), padded=(40, 48), mask=(40, 48))
    logits = np.random.default_rng(2).normal(0, 4, (3, 40, 48)).astype(np.float32)
    got = mask_coverage(logits, view, (4, 7))
    for plane, values in zip(logits, got, strict=True):
        np.testing.assert_allclose(values, by_pixels(1 / (1 + np.exp(-plane[:30, :40])), (4, 7)), atol=1e-5)


def test_mask_coverage_agrees_with_the_masks_at_the_image() -> None:
    """Odd sizes, coarse masks, padding: as the mean probability of the upsampled mask, up to the blur of upsampling."""
    view = View(original=(123, 181), resized=(90, 132), padded=(96, 160), mask=(24, 40))
    row, column = np.mgrid[:24, :40]
    logits = (6 - np.hypot(row - 9, column - 14))[None].astype(np.float32)
    got = mask_coverage(logits, view, (6, 9))[0]
    inside = mask_logits_at_image(torch.from_numpy(logits), view)[0].sigmoid().numpy()
    np.testing.assert_allclose(got, by_pixels(inside.astype(np.float64), (6, 9)), atol=0.02)
    assert got.max() > 0.9 and got.min() < 0.05


def test_extreme_logits_do_not_overflow() -> None:
    view = View(original=(4, 4), resized=(4, 4), padded=(4, 4), mask=(4, 4))
    with np.errstate(all="raise"):
        got = mask_coverage(np.array([np.full((4, 4), -9e4), np.full((4, 4), 9e4)]), view, (2, 2))
    assert got.tolist() == [[0.0] * 4, [1.0] * 4]


def test_flipping_is_that_of_the_image() -> None:
    regions = np.random.default_rng(3).integers(0, 2, (9, 13))
    got = flipped(region_coverage(regions, [0, 1], (3, 4)), (3, 4))
    np.testing.assert_allclose(got, region_coverage(regions[:, ::-1], [0, 1], (3, 4)), atol=1e-6)
