from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.classifier.making import tiny_model
from tests.datasets import making
from vitp_pipeline.classifier.training.annotations import Boxes, read_truth
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.data import PointBatches
from vitp_pipeline.classifier.training.prior import log_prior
from vitp_pipeline.config.mixture import Mixture, parse_mixture
from vitp_pipeline.datasets import IGNORE, Dataset
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import normalize_boxes, normalize_points


@pytest.fixture
def coco(tmp_path: Path) -> Dataset:
    return Dataset(making.write_coco(tmp_path, 6)[0], tmp_path, "val")


def batches(dataset: Dataset, *data: str, **changes) -> PointBatches:
    fields = {"image_size": (32, 48), "points": 30, "batch_size": 3, "augmentation": Augmentation(), "seed": 5}
    return PointBatches(dataset, dataset.samples, **{**fields, "mixture": parse_mixture(data), **changes})


# ---- the recipe's words ---------------------------------------------------------------------------------------------


def test_mixtures_and_their_shares() -> None:
    assert parse_mixture(("fine",)) == Mixture()
    assert parse_mixture(("fine=3", "boxes=1")) == Mixture(("fine", "boxes"), (0.75, 0.25))
    assert parse_mixture(("coarse", "fine")).shares == (0.5, 0.5)
    rng = np.random.default_rng(0)
    first = [parse_mixture(("fine=3", "coarse=1")).order(rng)[0] for _ in range(4000)]
    assert 0.72 < first.count("fine") / 4000 < 0.78
    state = rng.bit_generator.state
    assert Mixture().order(rng) == ["fine"] and rng.bit_generator.state == state  # nothing is drawn for one kind


@pytest.mark.parametrize("words", [(), ("masks",), ("fine", "fine=2"), ("fine=0",), ("fine=x",), ("fine=nan",)])
def test_mixtures_that_cannot_be(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse_mixture(words)


# ---- boxes ----------------------------------------------------------------------------------------------------------


def test_boxes_of_a_batch_frame_their_object(coco: Dataset) -> None:
    """In the classifier's coordinates, from the annotation file, beside the boxes of the label image's segments."""
    source = batches(coco, "boxes", batch_size=6)
    batch = source._batch(0)
    order = np.random.default_rng([5, 0]).permutation(6)
    assert batch.points.shape == (6, 30, 4) and batch.points.dtype == torch.float32
    for index, boxes, classes in zip(order, batch.points.numpy(), batch.classes.numpy(), strict=True):
        sample = coco.samples[index]
        ids, segments = coco.read_panoptic(sample)
        (height, width), expected = ids.shape, {}
        for s in segments:
            rows, cols = np.nonzero(ids == s.id)
            top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
            expected[s.category] = [
                2 * (top + bottom) / 2 / height - 1,
                2 * (left + right) / 2 / width - 1,
                2 * (bottom - top) / height,
                2 * (right - left) / width,
            ]
        crowds = {s.category for s in segments if s.iscrowd}
        assert set(classes) == set(expected) - crowds  # crowds are no objects
        for box, k in zip(boxes, classes, strict=True):
            assert box == pytest.approx(expected[k], abs=1e-6)


def test_boxes_need_no_label_image_and_are_cut_off_at_the_border(tmp_path: Path) -> None:
    _, data = making.write_coco(tmp_path, 2)
    height, width = data["images"][0]["height"], data["images"][0]["width"]
    first = data["annotations"][0]["segments_info"]
    first[0]["bbox"] = [-5, -3, 1000, 8]  # reaches over three borders
    first[1]["bbox"] = [width + 2, 0, 5, 5]  # lies outside
    del first[2:]
    del data["annotations"][1]["segments_info"][0]["bbox"]
    making.write_annotations(tmp_path, data)
    for path in (tmp_path / "panoptic_val").iterdir():
        path.unlink()
    dataset = Dataset(making.coco_spec(), tmp_path, "val")
    edges, classes = dataset.read_boxes(dataset.samples[0], (height, width))
    assert edges.tolist() == [[0, 0, 5, width]] and classes.tolist() == [0]
    with pytest.raises(InputError, match="has no `bbox`"):
        dataset.read_boxes(dataset.samples[1], (28, 36))
    source = batches(dataset, "boxes")
    assert len(source._batch(0).images) == 1 and "`bbox`" in source.skipped["146"]


def test_images_without_a_box_are_left_out_or_seen_otherwise(tmp_path: Path) -> None:
    _, data = making.write_coco(tmp_path, 2)
    for segment in data["annotations"][0]["segments_info"]:
        segment["iscrowd"] = 1
    making.write_annotations(tmp_path, data)
    dataset = Dataset(making.coco_spec(), tmp_path, "val")
    alone, mixed = batches(dataset, "boxes"), batches(dataset, "boxes=99", "fine")
    assert len(alone._batch(0).images) == 1 and alone.skipped == {"139": "no pixel has a label"}
    batch = mixed._batch(0)
    assert len(batch.images) == 2 and not mixed.skipped
    assert sorted((p[:, 2:] == 0).all().item() for p in batch.points) == [False, True]


@pytest.mark.parametrize("sampling", ["class-balanced", "instance-balanced", "uniform"])
def test_which_boxes_are_drawn(sampling: str) -> None:
    edges = np.array([[0, 0, 4, 4], [2, 2, 9, 9], [0, 5, 5, 10], [1, 1, 3, 3]], float)
    boxes = Boxes(edges, np.array([1, 1, 1, 5]), (10, 10))
    drawn, classes = boxes.draw(6000, np.random.default_rng(0), sampling)
    share = (classes == 5).mean()
    assert abs(share - (1 / 2 if sampling == "class-balanced" else 1 / 4)) < 0.03
    assert len(np.unique(drawn, axis=0)) == 4


# ---- coarse masks and objects ---------------------------------------------------------------------------------------


def test_coarse_points_lie_deeper_and_on_their_class(coco: Dataset) -> None:
    for sample in coco.samples:
        fine = coco.read_semantic(sample)
        coarse = read_truth(coco, sample, fine.shape, "coarse", "class-balanced", 0.3).numbers
        kept = coarse != IGNORE
        assert coarse.dtype == np.int16 and (coarse[kept] == fine[kept]).all()
        assert 0.3 < kept.mean() < 0.9 and set(np.unique(coarse[kept])) == set(np.unique(fine[fine != IGNORE]))
        objects = read_truth(coco, sample, fine.shape, "coarse", "instance-balanced", 0.3)
        assert np.array_equal(np.append(objects.classes, IGNORE)[objects.numbers], coarse)


def test_coarse_files_of_the_split_go_before_eroded_masks(tmp_path: Path) -> None:
    making.write_semantic(tmp_path, 2)
    split = SplitSpec("images/*.*", "labels/{stem}.png", labels_coarse="coarse/{stem}.png")
    dataset = Dataset(making.semantic_spec(splits={"train": split}), tmp_path, "train")
    for sample in dataset.samples:
        shape = dataset.read_semantic(sample).shape
        making.write_png(tmp_path / "coarse" / sample.image.name, np.full(shape, 2, np.uint8))
        truth = read_truth(dataset, sample, dataset.image_size(sample), "coarse", "class-balanced", 0.9)
        assert (truth.numbers == 1).all()
    making.write_png(tmp_path / "coarse" / "a0.png", np.full((3, 4), 2, np.uint8))
    with pytest.raises(InputError, match=r"coarse/a0.png: is 4×3"):
        read_truth(dataset, dataset.samples[0], dataset.image_size(dataset.samples[0]), "coarse", "uniform", 0.2)


def test_objects_are_drawn_alike_whatever_their_size_and_class(tmp_path: Path) -> None:
    labels = np.full((40, 50), 1, np.uint8)
    labels[2:6, 2:6], labels[2:5, 20:25], labels[30:38, 5:45] = 3, 3, 2
    making.write_png(tmp_path / "images" / "a.png", making.COLORS[labels - 1])
    making.write_png(tmp_path / "labels" / "a.png", labels)
    dataset = Dataset(making.semantic_spec(), tmp_path, "train")
    batch = batches(dataset, "fine", sampling="instance-balanced", points=4000)._batch(0)
    assert batch.points.shape[-1] == 2
    seen = np.bincount(batch.classes[0].numpy()) / 4000
    assert seen == pytest.approx([1 / 4, 1 / 4, 1 / 2], abs=0.03)  # sky, road, and two cars
    cols = (batch.points[0, batch.classes[0] == 2, 1] + 1) / 2 * 50
    assert (cols < 10).float().mean() == pytest.approx(0.5, abs=0.04)


# ---- mixtures -------------------------------------------------------------------------------------------------------


def test_a_mixture_is_seen_in_its_shares_and_again_the_same(coco: Dataset) -> None:
    fields = {"augmentation": Augmentation(flip=True, crop_scale=(0.5, 1.0), rotation=20), "points": 8}
    source = batches(coco, "boxes=1", "coarse=3", **fields)
    found = [batch for _, batch in source.from_step(0, 200)]
    points = torch.cat([batch.points for batch in found])
    is_box = (points[..., 2:] > 0).all(-1)
    assert (is_box.all(1) == is_box.any(1)).all()  # an image is seen with one kind
    assert 0.19 < is_box.all(1).float().mean() < 0.31
    again = batches(coco, "boxes=1", "coarse=3", workers=3, **fields)
    for step, batch in again.from_step(150, 160):
        assert torch.equal(batch.points, found[step].points) and torch.equal(batch.images, found[step].images)
    assert tiny_model()(torch.randn(3, 3, 32, 48), found[0].points).shape == (3, 8, 3)


def test_an_image_unreadable_in_one_kind_is_told_however_it_was_drawn(coco: Dataset) -> None:
    making.truncate(coco.samples[0].label)
    source = batches(coco, "boxes", "fine", batch_size=6)
    sizes = [len(batch.images) for _, batch in source.from_step(0, 12)]
    assert set(sizes) == {5, 6} and set(source.skipped) == {"139"}
    again = batches(coco, "boxes", "fine", batch_size=6)
    assert [len(batch.images) for _, batch in again.from_step(6, 12)] == sizes[6:]  # no memory of earlier epochs


def test_boxes_in_classifier_coordinates() -> None:
    edges = [[0, 0, 10, 40], [5, 10, 6, 30], [2, 30, 8, 40]]
    golden = [[0, 0, 2, 2], [0.1, 0, 0.2, 1], [0, 0.75, 1.2, 0.5]]
    assert normalize_boxes(np.array(edges), (10, 40)) == pytest.approx(np.array(golden), abs=1e-6)
    # the center is where the point between the two middle pixels would be
    assert normalize_boxes(np.array([4, 6, 8, 10]), (10, 40))[:2] == pytest.approx(normalize_points([6, 8], (10, 40)))


# ---- how often classes are drawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [("fine",), ("boxes",), ("fine=3", "boxes=1"), ("coarse",)])
def test_the_prior_is_the_share_of_drawn_points(coco: Dataset, data: tuple[str, ...]) -> None:
    """Beside a count of what 100 epochs of batches really draw."""
    source = batches(coco, *data, batch_size=6)
    prior = log_prior(source)
    drawn = np.zeros(len(coco.spec.classes))
    for epoch in range(100):
        drawn += np.bincount(source._batch(epoch).classes.flatten(), minlength=len(drawn))
    expected = np.exp(prior) / np.exp(prior).sum()
    counted = (1 + drawn / 100) / (1 + drawn / 100).sum()
    np.testing.assert_allclose(expected, counted, atol=0.01)
    assert abs(prior.mean()) < 1e-6
