"""Ground truth that is not in label images: polygons, instances, boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.datasets import making
from tests.datasets.test_dataset import fails
from vitp_pipeline.classifier.training.annotations import Areas, Boxes, read_truth
from vitp_pipeline.datasets import IGNORE, ClassInfo, Dataset, DatasetSpec, load_manifest
from vitp_pipeline.datasets.label_kinds.semantic_png import read_values
from vitp_pipeline.datasets.polygons import read_polygons
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import size_of

HEIGHT, WIDTH = 40, 60


def random_polygons(seed: int) -> dict[str, Any]:
    """A Cityscapes file: overlapping polygons of all kinds of labels, groups and deleted ones among them."""
    rng = np.random.default_rng(seed)
    names = [
        "road",
        "car",
        "cargroup",
        "bicyclegroup",
        "polegroup",
        "license plate",
        "ego vehicle",
        "static",
        "unlabeled",
    ]
    objects: list[dict[str, Any]] = []
    for n in range(14):
        corners = np.stack([rng.integers(-5, WIDTH + 5, 5), rng.integers(-5, HEIGHT + 5, 5)], 1).tolist()
        entry = {"label": str(rng.choice(names)), "polygon": corners}
        objects.append(entry | ({"deleted": 1} if n % 5 == 4 else {}))
    return {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}


@pytest.mark.parametrize("seed", range(6))
def test_polygons_are_drawn_as_cityscapesscripts_draws_them(tmp_path: Path, seed: int) -> None:
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation").Annotation()
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    path = tmp_path / "a_polygons.json"
    path.write_text(json.dumps(random_polygons(seed)))
    annotation.fromJsonFile(str(path))
    expected = np.asarray(createLabelImage(annotation, "ids"))
    found = read_polygons(path, load_manifest("cityscapes"))
    assert found.dtype == np.int32 and np.array_equal(found, expected) and len(np.unique(expected)) > 3


def test_real_coarse_polygons_agree_with_cityscapesscripts_and_the_fine_labels(shared: Path) -> None:
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation").Annotation()
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    data = Dataset(load_manifest("cityscapes"), shared / "data/cityscapes", "train")
    sample = data.samples[0]
    assert sample.coarse is not None and data.has_coarse
    annotation.fromJsonFile(str(sample.coarse))
    assert np.array_equal(read_values(data, sample, coarse=True), np.asarray(createLabelImage(annotation, "ids")))
    coarse, fine = data.read_semantic(sample, coarse=True), data.read_semantic(sample)
    both = (coarse != IGNORE) & (fine != IGNORE)
    assert (coarse[both] == fine[both]).mean() > 0.99 and (fine != IGNORE).sum() > (coarse != IGNORE).sum()
    image = data.read_image(sample)
    areas = read_truth(data, sample, size_of(image), "coarse", "class-balanced", 0.2)
    assert isinstance(areas, Areas) and np.array_equal(areas.numbers, coarse)  # not the eroded fine ones


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d: d["objects"].append({"label": "dragon", "polygon": [[0, 0], [3, 3], [0, 3]]}),
            ["dragon", "polygons"],
        ),
        (lambda d: d.pop("imgWidth"), ["imgWidth"]),
        (
            lambda d: d["objects"].append({"label": "car", "polygon": 7}),
            ["('car') is 7, not a list of points"],
        ),
    ],
)
def test_broken_polygon_files(tmp_path: Path, change: Any, words: list[str]) -> None:
    data = random_polygons(0)
    change(data)
    path = tmp_path / "a_polygons.json"
    path.write_text(json.dumps(data))
    with fails(InputError, str(path), *words):
        read_polygons(path, load_manifest("cityscapes"))


# ---- instances ------------------------------------------------------------------------------------------------------


def instances_spec() -> DatasetSpec:
    classes = tuple(ClassInfo(n, c, True, (0, 0, 0)) for n, c in zip(making.NAMES, making.CATEGORIES, strict=True))
    splits = {"val": SplitSpec("val", annotations="instances.json")}
    return DatasetSpec("toy", classes, "coco-instances", (), splits)


def write_instances(root: Path, outlines: bool = True) -> dict[str, Any]:
    """Two images of 40×60, the second without objects; polygons, both kinds of run lengths, an overlap, a crowd."""
    from pycocotools import mask

    for number in (3, 8):
        making.write_png(root / f"val/{number}.png", np.full((HEIGHT, WIDTH, 3), 9 * number, np.uint8))
    big, crowd = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    big[5:30, 10:50], crowd[2:38, 2:58] = 1, 1
    runs = mask.encode(np.asfortranarray(big))
    flat = crowd.ravel(order="F")
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), len(flat)]).tolist()  # begins with zeros
    shapes = [
        {"category_id": 7, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs["counts"].decode()}},
        {"category_id": 90, "segmentation": [[12.0, 8.0, 22.5, 8.0, 22.5, 19.0, 12.0, 19.0], [40, 20, 45, 20, 45, 26]]},
        {"category_id": 3, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}, "iscrowd": 1},
    ]
    boxes = [[10, 5, 40, 25], [12, 8, 33, 18], [2, 2, 56, 36]]
    annotations = [
        {"id": 50 + n, "image_id": 3, "iscrowd": 0, "bbox": box, "area": 100.0 * (n + 1), **shape}
        for n, (shape, box) in enumerate(zip(shapes, boxes, strict=True))
    ]
    annotations[0]["area"], annotations[1]["area"] = 1000, 143.75
    if not outlines:
        for annotation in annotations:
            del annotation["segmentation"]
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (3, 8)],
        "annotations": annotations,
        "categories": [{"id": c, "name": n} for c, n in zip(making.CATEGORIES, making.NAMES, strict=True)],
    }
    (root / "instances.json").write_text(json.dumps(data))
    return data


def test_instances_are_those_of_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_instances(tmp_path)
    data = Dataset(instances_spec(), tmp_path, "val")
    theirs = COCO(tmp_path / "instances.json")
    found = data.read_instances(data.samples[0])
    assert [f.id for f in found] == [50, 51, 52] and data.has_masks and not data.has_segments
    for instance in found:
        annotation = theirs.anns[instance.id]
        assert np.array_equal(instance.mask, theirs.annToMask(annotation).astype(bool)) and instance.mask.any()
        assert instance.mask.dtype == bool and instance.area == annotation["area"]
        assert data.spec.classes[instance.category].label == annotation["category_id"]
        assert instance.iscrowd == bool(annotation["iscrowd"])
    assert data.read_instances(data.samples[1]) == []
    numbers, classes = data.read_regions(data.samples[0])
    assert classes.tolist() == [1, 2, 0]
    masks = [f.mask for f in found]
    expected = np.where(masks[1], 1, np.where(masks[0], 0, np.where(masks[2], 2, IGNORE)))  # the smaller one is seen
    assert np.array_equal(numbers, expected)
    semantic = data.read_semantic(data.samples[0])
    assert np.array_equal(semantic, np.array([1, 2, 0, IGNORE])[expected])
    assert (data.read_semantic(data.samples[1]) == IGNORE).all()
    with fails(InputError, "no segments"):
        data.read_panoptic(data.samples[0])


def test_boxes_without_masks_can_be_trained_on_and_nothing_else(tmp_path: Path) -> None:
    write_instances(tmp_path, outlines=False)
    data = Dataset(instances_spec(), tmp_path, "val")
    sample, image = data.samples[0], data.read_image(data.samples[0])
    boxes = read_truth(data, sample, size_of(image), "boxes", "class-balanced", 0.2)
    assert isinstance(boxes, Boxes) and boxes.classes.tolist() == [1, 2]  # the crowd is none
    assert boxes.edges.tolist() == [[5, 10, 30, 50], [8, 12, 26, 45]]
    assert not data.has_masks
    for read in (data.read_semantic, data.read_regions, data.read_instances):
        with fails(InputError, "instances.json", "boxes", 'data = ["boxes"]'):
            read(sample)


def test_training_on_boxes_alone_is_refused_at_once_when_it_needs_masks(tmp_path: Path) -> None:
    from vitp_pipeline.config.recipe import Recipe
    from vitp_pipeline.config.settings import TrainSettings
    from vitp_pipeline.stages.train_classifier import train_classifier

    write_instances(tmp_path, outlines=False)
    recipe = Recipe(tmp_path / "r.toml", {}, "toy", instances_spec())
    for changes in ({}, {"data": ("boxes", "fine")}, {"data": ("boxes",), "hold_out": 1}):
        with fails(UsageError, "boxes only", 'data = ["boxes"]'):
            train_classifier(recipe, TrainSettings(split="val", **changes), tmp_path, tmp_path / "out")


def test_instances_of_a_panoptic_and_of_a_semantic_ground_truth(tmp_path: Path) -> None:
    panoptic = Dataset(making.write_coco(tmp_path / "p")[0], tmp_path / "p", "val")
    ids, segments = panoptic.read_panoptic(panoptic.samples[1])
    (car,) = [s for s in segments if s.category == 2]
    (found,) = panoptic.read_instances(panoptic.samples[1])
    assert (found.id, found.category, found.iscrowd) == (car.id, 2, True)
    assert np.array_equal(found.mask, ids == car.id) and found.area == found.mask.sum()
    semantic = Dataset(making.write_semantic(tmp_path / "s"), tmp_path / "s", "train")
    (found,) = semantic.read_instances(semantic.samples[0])
    assert found.category == 2 and np.array_equal(found.mask, semantic.read_semantic(semantic.samples[0]) == 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["annotations"][0].update(image_id=77), ["annotation 50", "77"]),
        (
            lambda d: (d["annotations"][1].update(category_id=5), d["categories"].append({"id": 5, "name": "x"})),
            ["category id 5", "the manifest of this dataset"],
        ),
        (lambda d: d["annotations"].append(None), ["annotations[3] is None, not an object"]),
        (lambda d: d.update(images={}), ["images is {}, not a list"]),
        (lambda d: d["images"][1].pop("file_name"), ["image 8 has no `file_name`"]),
        (lambda d: d["categories"][0].update(name="heaven"), ["'heaven'", "'sky'"]),
    ],
)
def test_broken_instances_files(tmp_path: Path, change: Any, words: list[str]) -> None:
    data = write_instances(tmp_path)
    change(data)
    (tmp_path / "instances.json").write_text(json.dumps(data))
    with fails(InputError, "instances.json", *words):
        Dataset(instances_spec(), tmp_path, "val")


def test_a_broken_outline_spoils_one_image_only(tmp_path: Path) -> None:
    data = write_instances(tmp_path)
    data["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH + 1], "counts": [0, HEIGHT * (WIDTH + 1)]}
    (tmp_path / "instances.json").write_text(json.dumps(data))
    dataset = Dataset(instances_spec(), tmp_path, "val")
    with fails(InputError, "annotation 50", "3.png", "61×40"):
        dataset.read_instances(dataset.samples[0])
    assert dataset.read_instances(dataset.samples[1]) == []
