"""Masks that know no class, of drawn images: they nest, their scores are what a loop over regions finds."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("skimage")

from tools.class_free_masks import SAME, nested_masks


def scene(seed: int) -> np.ndarray:
    """Boxes in boxes of other colors, with noise: (60, 80, 3) uint8."""
    draw = np.random.default_rng(seed)
    image = np.full((60, 80, 3), 90, float)
    image[8:52, 10:50] = (200, 60, 40)
    image[18:34, 18:34] = (185, 70, 45)
    image[5:55, 58:76] = (30, 120, 200)
    return (image + draw.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_iou_with_a_region_of_a_neighboring_scale(seed: int) -> None:
    from skimage.segmentation import felzenszwalb

    image, scales = scene(seed), (20.0, 100.0, 500.0)
    masks, scores = nested_masks(image, scales, least=0.005)
    assert masks.dtype == bool and scores.dtype == np.float32 and (np.diff(scores) <= 0).all()
    levels = [felzenszwalb(image, scale, sigma=0.8, min_size=24) for scale in scales]
    regions = [[level == number for number in np.unique(level)] for level in levels]
    expected = []
    for place, own in enumerate(regions):
        below = regions[place - 1] if place else []
        above = regions[place + 1] if place + 1 < len(regions) else []
        for region in own:
            if not any(iou(region, other) >= SAME for other in below):
                expected.append(max(iou(region, other) for other in (*below, *above)))
    assert np.allclose(sorted(expected, reverse=True), scores)
    assert all(mask.sum() >= 24 for mask in masks)


def test_the_box_in_the_box_has_a_mask_of_its_own_inside_another() -> None:
    masks, _ = nested_masks(scene(0), (20.0, 100.0, 500.0, 5000.0), least=0.005)
    part = np.zeros((60, 80), bool)
    part[18:34, 18:34] = True
    own = max(masks, key=lambda mask: iou(mask, part))
    assert iou(own, part) > 0.8
    assert any((mask & own).sum() > 0.95 * own.sum() and mask.sum() > 2 * own.sum() for mask in masks)


def test_so_many_masks_are_kept() -> None:
    every, scores = nested_masks(scene(1), (20.0, 200.0, 800.0), least=0.002)
    few, best = nested_masks(scene(1), (20.0, 200.0, 800.0), least=0.002, most=3)
    assert len(every) > 3 and (best == scores[:3]).all() and (few == every[:3]).all()
