from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.datasets import making
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.training.augmentation import LEAST_VISIBLE, Augmentation, Change
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.geometry import normalize_points

SIZE = (64, 80)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    image, labels = making.draw(np.random.default_rng(seed), 60, 90)
    return image, labels.astype(np.int16)


def agreement(pixels: np.ndarray, labels: np.ndarray) -> float:
    """Of the labeled pixels, the share whose place in the picture has the color of their class."""
    rows, cols = np.nonzero(labels != IGNORE)
    points = normalize_points(np.stack([rows + 0.5, cols + 0.5], 1), labels.shape)  # pixel centers
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


def test_flip_happens_half_of_the_time_and_exchanges_left_and_right() -> None:
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


def test_color_changes_leave_the_labels_alone() -> None:
    image, labels = scene()
    pixels, target = Augmentation(color_jitter=0.5).apply(image, labels, SIZE, np.random.default_rng(1))
    plain, _ = Augmentation().apply(image, labels, SIZE, np.random.default_rng(1))
    assert np.array_equal(target, labels) and np.abs(pixels.astype(int) - plain).mean() > 3


# ---- boxes ----------------------------------------------------------------------------------------------------------


def painted(mask: np.ndarray) -> list[int]:
    rows, cols = np.nonzero(mask)
    return [int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1]


def drawn_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    corners = [np.sort(rng.integers(0, side + 1, (count, 2)), axis=1) for side in size]
    edges = np.stack([corners[0][:, 0], corners[1][:, 0], corners[0][:, 1], corners[1][:, 1]], 1).astype(float)
    return edges[(edges[:, 2:] - edges[:, :2] >= 4).all(1)]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_move_with_the_labels(name: str) -> None:
    """A rectangle painted into a label map is found again inside its changed box, and touches all its sides."""
    rng, size, kept_ones = np.random.default_rng(3), (60, 90), 0
    for seed in range(25):
        change = AUGMENTATIONS[name].draw(size, np.random.default_rng(seed))
        edges = drawn_boxes(rng, 6, size)
        changed, kept, frame = change.boxes(edges, size)
        for before, after, keep in zip(edges.astype(int), changed, kept, strict=True):
            mask = np.full(size, IGNORE, np.int16)
            mask[before[0] : before[2], before[1] : before[3]] = 1
            found = change.labels(mask)
            assert found.shape == frame
            assert (after >= 0).all() and (after <= [*frame, *frame]).all()
            if not keep:
                assert (found == 1).sum() < (mask == 1).sum() * 0.75  # what is dropped has lost much
            elif (found == 1).any():
                assert painted(found == 1) == pytest.approx(after, abs=1.5 if change.angle else 1e-9)
                kept_ones += 1
    assert kept_ones > 40


def test_boxes_are_cut_off_and_dropped_where_most_of_them_is_lost() -> None:
    edges = np.array([[0, 0, 10, 10], [0, 0, 10, 20], [10, 10, 20, 30], [0, 14, 4, 20]], float)
    changed, kept, frame = Change(crop=(5, 0, 25, 15)).boxes(edges, (40, 40))
    assert frame == (15, 20)
    assert changed.tolist() == [[0, 0, 10, 5], [0, 0, 10, 15], [10, 5, 15, 20], [0, 9, 4, 15]]
    assert kept.tolist() == [True, True, False, True]  # 50, 75, 37.5 and 100 % are left
    assert LEAST_VISIBLE == 0.5
    flipped, kept, _ = Change(flip=True).boxes(edges[:1], (40, 40))
    assert flipped.tolist() == [[0, 30, 10, 40]] and kept.all()
    quarter, kept, _ = Change(angle=90).boxes(np.array([[0, 0, 10, 20]], float), (40, 40))
    assert quarter == pytest.approx(np.array([[20, 0, 40, 10]])) and kept.all()
    none, kept, _ = Change(angle=3, crop=(0, 0, 5, 5), flip=True).boxes(np.zeros((0, 4)), (40, 40))
    assert none.shape == (0, 4) and kept.shape == (0,)
