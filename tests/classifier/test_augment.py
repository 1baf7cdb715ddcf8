from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.datasets import making
from vitp_pipeline.classifier.augment import Augmentation
from vitp_pipeline.classifier.pixels import prepare_image
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.geometry import normalise_points

SIZE = (64, 80)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    image, labels = making.draw(np.random.default_rng(seed), 60, 90)
    return image, labels.astype(np.int16)


def agreement(pixels: np.ndarray, labels: np.ndarray) -> float:
    """Of the labelled pixels, the share whose place in the picture has the colour of their class."""
    rows, cols = np.nonzero(labels != IGNORE)
    points = normalise_points(np.stack([rows + 0.5, cols + 0.5], 1), labels.shape)  # pixel centres
    where = ((points + 1) / 2 * np.array(SIZE)).astype(int).clip(0, np.array(SIZE) - 1)
    colors = pixels[:, where[:, 0], where[:, 1]].T.astype(int)
    nearest = np.abs(colors[:, None] - making.COLORS[None].astype(int)).sum(2).argmin(1)
    return float((nearest == labels[rows, cols]).mean())


AUGMENTATIONS = {
    "none": Augmentation(),
    "flip": Augmentation(flip=True),
    "crop": Augmentation(crop_scale=(0.3, 0.9)),
    "rotation": Augmentation(rotation=25),
    "all": Augmentation(flip=True, crop_scale=(0.3, 1.0), rotation=15),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_labels_move_with_the_image(name: str) -> None:
    image, labels = scene()
    for seed in range(12):
        pixels, target = AUGMENTATIONS[name].apply(image, labels, SIZE, np.random.default_rng(seed))
        assert pixels.shape == (3, *SIZE) and pixels.dtype == np.uint8 and target.dtype == np.int16
        assert set(np.unique(target)) <= {IGNORE, 0, 1, 2}
        assert agreement(pixels, target) > 0.96  # but for the blur along the borders
        assert agreement(pixels[..., ::-1], target) < 0.96  # and the measure notices


def test_without_changes_it_is_only_resized() -> None:
    image, labels = scene()
    pixels, target = Augmentation().apply(image, labels, SIZE, np.random.default_rng(0))
    assert np.array_equal(target, labels)
    assert np.array_equal(pixels, prepare_image(image, SIZE))
    expected = np.asarray(Image.fromarray(image).resize((80, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels.transpose(1, 2, 0), expected)


def test_corners_that_a_rotation_brings_in_are_ignored() -> None:
    image, labels = np.full((60, 60, 3), 200, np.uint8), np.zeros((60, 60), np.int16)
    for seed in range(8):
        pixels, target = Augmentation(rotation=45).apply(image, labels, (60, 60), np.random.default_rng(seed))
        black, ignored = pixels.max(0) == 0, target == IGNORE
        assert (black & ~ignored).mean() < 0.005  # nothing black is trained on
        assert (ignored & (pixels.min(0) == 200)).mean() < 0.01  # and little is lost
    assert ignored[0, 0] and not ignored[30, 30]


def test_flip_happens_half_of_the_time_and_mirrors() -> None:
    image, labels = scene()
    rng, flipped = np.random.default_rng(0), 0
    for _ in range(200):
        pixels, target = Augmentation(flip=True).apply(image, labels, (60, 90), rng)
        if np.array_equal(target, labels[:, ::-1]):
            flipped += 1
            assert np.array_equal(pixels.transpose(1, 2, 0), image[:, ::-1])
        else:
            assert np.array_equal(target, labels) and np.array_equal(pixels.transpose(1, 2, 0), image)
    assert 75 < flipped < 125


def test_crops_keep_the_share_and_shape_asked_for() -> None:
    image, labels = scene()
    shares, ratios = [], []
    for seed in range(200):
        _, target = Augmentation(crop_scale=(0.25, 0.5)).apply(image, labels, SIZE, np.random.default_rng(seed))
        shares.append(target.size / labels.size)
        ratios.append(target.shape[1] / target.shape[0] / (90 / 60))
    assert 0.23 < min(shares) < 0.28 and 0.47 < max(shares) < 0.53
    assert 0.72 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.39


def test_colour_changes_leave_the_labels_alone() -> None:
    image, labels = scene()
    pixels, target = Augmentation(color_jitter=0.5).apply(image, labels, SIZE, np.random.default_rng(1))
    plain, _ = Augmentation().apply(image, labels, SIZE, np.random.default_rng(1))
    assert np.array_equal(target, labels) and np.abs(pixels.astype(int) - plain).mean() > 3
