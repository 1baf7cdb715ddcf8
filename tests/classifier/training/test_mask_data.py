from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import making
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.data import PointBatches
from vitp_pipeline.classifier.training.mask_data import MaskBatches, draw_masks, ground_truth_masks, read_regions
from vitp_pipeline.datasets import IGNORE, Dataset

GRID = (4, 6)


def batches(dataset: Dataset, **changes) -> MaskBatches:
    fields = {"image_size": (32, 48), "points": 20, "batch_size": 3, "augmentation": Augmentation(flip=True)}
    fields |= {"sampling": "class-balanced", "seed": 5, "workers": 1} | changes
    return MaskBatches(dataset, dataset.samples, *fields.values(), grid=GRID)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(making.write_semantic(tmp_path / "data", 7), tmp_path / "data", "train")


def test_batches_hold_coverage_where_points_were(dataset: Dataset) -> None:
    source = batches(dataset)
    assert isinstance(source, PointBatches) and source.steps_per_epoch == 3
    whole = dict(source.from_step(0, 6))
    batch = whole[0]
    assert batch.images.shape == (3, 3, 32, 48) and batch.images.dtype == torch.uint8
    assert batch.points.shape == (3, 20, 24) and batch.points.dtype == torch.float32
    assert batch.classes.shape == (3, 20) and batch.classes.dtype == torch.int64
    assert batch.points.min() >= 0 and batch.points.max() <= 1.0001
    for step, again in batches(dataset, workers=3).from_step(4, 6):  # a function of the step alone
        assert all(torch.equal(getattr(again, n), getattr(whole[step], n)) for n in ("images", "points", "classes"))


def test_masks_lie_on_their_class_in_the_image(dataset: Dataset) -> None:
    """Patches that a mask covers whole have its class's color, also when flipped, turned and cropped."""
    augmentation = Augmentation(flip=True, crop_scale=(0.5, 1.0), rotation=10.0)
    count = 0
    for _, batch in batches(dataset, augmentation=augmentation).from_step(0, 9):
        means = torch.nn.functional.avg_pool2d(batch.images.float(), 8).flatten(2).transpose(1, 2)  # (B, P, 3)
        for colors, masks, classes in zip(means.numpy(), batch.points.numpy(), batch.classes.numpy(), strict=True):
            for mask, k in zip(masks, classes, strict=True):
                inside = mask > 0.999
                assert np.abs(colors[inside] - making.COLORS[k]).max(initial=0) < 30
                count += inside.sum()
    assert count > 1000


def test_ground_truth_masks_are_classes_and_their_several_segments(tmp_path: Path) -> None:
    regions = np.full((8, 12), IGNORE)
    regions[:4, :6], regions[:4, 6:], regions[4:, :2], regions[4, 11] = 3, 0, 2, 1
    classes = np.array([5, 7, 5, 9])  # regions 0 and 2 are of one class
    coverage, names = ground_truth_masks(regions, classes, (2, 6))
    assert names.tolist() == [5, 5, 5, 7, 9]
    expected = np.zeros((5, 2, 6))
    expected[1, 0, 3:] = expected[2, 1, :1] = 1
    expected[0] = expected[1] + expected[2]
    expected[3, 1, 5] = 1 / 8
    expected[4, 0, :3] = 1
    np.testing.assert_allclose(coverage, expected.reshape(5, 12), atol=1e-6)
    nothing, names = ground_truth_masks(np.full((8, 12), IGNORE), classes, (2, 6))
    assert nothing.shape == (0, 12) and len(names) == 0


def test_regions_of_a_panoptic_ground_truth_are_its_segments(tmp_path: Path) -> None:
    spec, _ = making.write_coco(tmp_path, 3)
    dataset = Dataset(spec, tmp_path, "val")
    for sample in dataset.samples:
        image, regions, classes = read_regions(dataset, sample)
        labels = dataset.read_semantic(sample)
        assert image.shape[:2] == regions.shape and regions.dtype == np.int16
        assert (np.where(regions == IGNORE, IGNORE, classes[regions]) == labels).all()
        assert len(classes) == len(sample.segments) == regions.max() + 1


def test_drawn_masks_are_balanced_over_classes() -> None:
    classes = np.array([4, 1, 4, 4, 1, 8])
    drawn = draw_masks(classes, 60000, np.random.default_rng(0))
    share = np.bincount(drawn, minlength=6) / 60000
    np.testing.assert_allclose(share, [1 / 9, 1 / 6, 1 / 9, 1 / 9, 1 / 6, 1 / 3], atol=0.01)
    uniform = draw_masks(classes, 60000, np.random.default_rng(0), "uniform")
    np.testing.assert_allclose(np.bincount(uniform) / 60000, 1 / 6, atol=0.01)


def test_images_without_masks_are_left_out(dataset: Dataset) -> None:
    making.truncate(dataset.samples[2].image, 0.6)
    shape = dataset.read_image(dataset.samples[5]).shape[:2]
    making.write_png(dataset.samples[5].label, np.full(shape, 255, np.uint8))
    source = batches(dataset)
    assert sum(len(b.images) for _, b in source.from_step(0, 3)) == 5
    assert set(source.skipped) == {"a2", "a5"} and source.skipped["a5"] == "no pixel has a label"
