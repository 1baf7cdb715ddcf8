"""`vitp init` on generated folders of every layout: the manifest that it writes reads each image with its labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.layouts.detect import detect_layout
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.datasets.layouts.manifest_text import manifest_text
from vitp_pipeline.datasets.layouts.sampled_labels import VOC_NAMES, voc_color
from vitp_pipeline.datasets.manifest import load_manifest
from vitp_pipeline.errors import InputError

SIZE = (12, 16)


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)).save(path)


def values(seed: int, classes: int = 3, void: int | None = None) -> np.ndarray:
    """(H, W) uint8: stripes of the classes, which begin at another column for every seed."""
    labels = np.tile((np.arange(SIZE[1]) + seed) % classes, (SIZE[0], 1)).astype(np.uint8)
    if void is not None:
        labels[0] = void
    return labels


def label(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def folders(images: str, labels: str, count: int = 6, void: int | None = None) -> Callable[[Path], None]:
    """Make `count` images and labels of these paths, which hold {n}."""

    def make(root: Path) -> None:
        for n in range(count):
            photo(root / images.format(n=n), n)
            label(root / labels.format(n=n), values(n, void=void))

    return make


def both(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for maker in makers:
            maker(root)

    return make


def voc(root: Path) -> None:
    colors = np.array([voc_color(k) for k in range(21)], np.uint8)
    for n in range(6):
        photo(root / f"VOC/JPEGImages/{n}.jpg", n)
        label(root / f"VOC/SegmentationClass/{n}.png", colors[values(n) * 7])
    (root / "VOC/ImageSets/Segmentation").mkdir(parents=True)
    (root / "VOC/ImageSets/Segmentation/train.txt").write_text("".join(f"{n}\n" for n in range(4)))
    (root / "VOC/ImageSets/Segmentation/val.txt").write_text("4\n5\n")


def cvat(root: Path) -> None:
    """CVAT's "Segmentation mask 1.1": palette PNGs and labelmap.txt, images elsewhere or beside."""
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
    for n in range(6):
        photo(root / f"JPEGImages/{n}.png", n)
        label(root / f"SegmentationClass/{n}.png", colors[values(n)])
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "plant:250,50,83::", "weed:51,221,255::"]
    (root / "labelmap.txt").write_text("\n".join(lines) + "\n")


def instances(names: tuple[str, ...], where: str = "annotations/instances_{split}.json") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for split in names:
            images, annotations = [], []
            for n in range(5):
                photo(root / f"{split}/{n}.jpg", n)
                images.append({"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]})
                box = [2.0, 1.0, 8.0, 6.0]
                outline = [[2, 1, 10, 1, 10, 7, 2, 7]]
                found = {"id": n + 1, "image_id": n, "category_id": 7 + 2 * (n % 2), "bbox": box, "area": 48}
                annotations.append({**found, "iscrowd": 0, "segmentation": outline})
            categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
            content = {"images": images, "annotations": annotations, "categories": categories}
            path = root / where.format(split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))

    return make


def panoptic(root: Path) -> None:
    images, annotations = [], []
    for n in range(5):
        photo(root / f"val/{n}.jpg", n)
        ids = np.zeros((*SIZE, 3), np.uint8)
        ids[..., 0] = values(n, 2) + 1
        label(root / f"panoptic/{n}.png", ids)
        segments = [{"id": k + 1, "category_id": k + 3, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]} for k in (0, 1)]
        images.append({"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]})
        annotations.append({"image_id": n, "file_name": f"{n}.png", "segments_info": segments})
    categories = [{"id": 3, "name": "sky", "isthing": 0, "color": [1, 2, 3]}, {"id": 4, "name": "car", "isthing": 1}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content))


GUESSED, NAMED = ("class_0", "class_1", "class_2"), ("road", "tree", "sky")
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, str, tuple[str, ...], dict[str, int]]] = {
    "images-annotations": (
        folders("images/{n}.jpg", "annotations/{n}.png"),
        "label images",
        "semantic-png",
        GUESSED,
        {"train": 4, "val": 2},
    ),
    "by-split-below": (
        both(
            folders("images/train/{n}.jpg", "labels/train/{n}.png"), folders("images/val/{n}.jpg", "labels/val/{n}.png")
        ),
        "label images",
        "semantic-png",
        GUESSED,
        {"train": 6, "val": 6},
    ),
    "by-split-above": (
        both(
            folders("training/img/{n}.jpg", "training/masks/{n}.png"), folders("test/img/{n}.jpg", "test/masks/{n}.png")
        ),
        "label images",
        "semantic-png",
        GUESSED,
        {"train": 6, "val": 6, "test": 6},
    ),
    "suffixes": (
        folders("images/{n:03}_image.png", "annotations/{n:03}_annotation.png"),
        "label images",
        "semantic-png",
        GUESSED,
        {"train": 4, "val": 2},
    ),
    "one-folder": (folders("{n}.jpg", "{n}_mask.png"), "label images", "semantic-png", GUESSED, {"train": 4, "val": 2}),
    "sequences": (
        both(folders("images/a/{n}.jpg", "labels/a/{n}.png"), folders("images/b/{n}.jpg", "labels/b/{n}.png")),
        "label images",
        "semantic-png",
        GUESSED,
        {"train": 9, "val": 3},
    ),
    "void": (
        folders("images/{n}.jpg", "masks/{n}.png", void=255),
        "label images",
        "semantic-png",
        GUESSED,
        {"train": 4, "val": 2},
    ),
    "mmseg": (
        both(
            folders("img_dir/train/{n}.jpg", "ann_dir/train/{n}.png"),
            folders("img_dir/val/{n}.jpg", "ann_dir/val/{n}.png"),
        ),
        "mmsegmentation",
        "semantic-png",
        GUESSED,
        {"train": 6, "val": 6},
    ),
    "detectron2": (
        both(
            folders("images/training/{n}.jpg", "annotations_detectron2/training/{n}.png"),
            folders("images/validation/{n}.jpg", "annotations_detectron2/validation/{n}.png"),
        ),
        "detectron2",
        "semantic-png",
        GUESSED,
        {"train": 6, "val": 6},
    ),
    "voc": (voc, "PASCAL VOC", "color-png", tuple(VOC_NAMES.split()[k] for k in (0, 14, 7)), {"train": 4, "val": 2}),
    "cvat": (cvat, "PASCAL VOC", "color-png", ("background", "plant", "weed"), {"train": 4, "val": 2}),
    "coco-instances": (
        instances(("train2017", "val2017")),
        "COCO instances",
        "coco-instances",
        ("cat", "dog"),
        {"train": 5, "val": 5},
    ),
    "roboflow": (
        instances(("train", "valid"), "{split}/_annotations.coco.json"),
        "COCO instances",
        "coco-instances",
        ("cat", "dog"),
        {"train": 5, "val": 5},
    ),
    "one-json": (
        instances(("photos",), "result.json"),
        "COCO instances",
        "coco-instances",
        ("cat", "dog"),
        {"train": 4, "val": 1},
    ),
    "coco-panoptic": (panoptic, "COCO panoptic", "coco-panoptic", ("sky", "car"), {"train": 4, "val": 1}),
}


def written(root: Path, tmp_path: Path) -> tuple[Layout, dict[str, Dataset]]:
    """The layout of a folder, and the splits of the manifest that is written for it."""
    layout = detect_layout(root)
    (tmp_path / "made.toml").write_text(manifest_text("made", layout), encoding="utf-8")
    spec = load_manifest(tmp_path / "made.toml")
    return layout, {split: Dataset(spec, root, split) for split in spec.splits}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_manifest_of_a_layout_reads_its_images(name: str, tmp_path: Path) -> None:
    make, title, kind, classes, counts = LAYOUTS[name]
    make(tmp_path / "data")
    layout, splits = written(tmp_path / "data", tmp_path)
    assert (layout.title, layout.kind) == (title, kind)
    assert {split: len(dataset) for split, dataset in splits.items()} == counts
    assert set(splits["val"].spec.class_names) == set(classes)
    if kind != "color-png":
        assert splits["val"].spec.class_names == classes
    assert not {*splits["train"].image_ids} & {*splits["val"].image_ids} or "by-split" in name or counts["val"] > 4
    for dataset in splits.values():
        for sample in dataset.samples:
            truth = dataset.read_semantic(sample)
            assert truth.shape == SIZE == dataset.read_image(sample).shape[:2]
            assert (truth >= 0).any()


def test_labels_are_those_that_were_written(tmp_path: Path) -> None:
    folders("images/{n}.jpg", "annotations/{n}.png", void=255)(tmp_path / "data")
    _, splits = written(tmp_path / "data", tmp_path)
    assert splits["val"].image_ids == ("0", "5") and splits["train"].image_ids == ("1", "2", "3", "4")
    wanted = values(5).astype(int)
    wanted[0] = -1
    assert np.array_equal(splits["val"].read_semantic(splits["val"].sample("5")), wanted)


@pytest.mark.parametrize(
    "text", ["road\ntree\nsky\n", "0: road\n1: tree\n2: sky\n", "name,r,g,b\nroad,1,2,3\ntree,4,5,6\nsky,7,8,9"]
)
def test_class_names_from_a_file(text: str, tmp_path: Path) -> None:
    folders("images/{n}.jpg", "annotations/{n}.png")(tmp_path / "data")
    (tmp_path / "data" / ("class_dict.csv" if "," in text else "classes.txt")).write_text(text)
    layout, splits = written(tmp_path / "data", tmp_path)
    assert splits["val"].spec.class_names == NAMED and not layout.guessed


def test_void_may_be_zero(tmp_path: Path) -> None:
    folders("images/{n}.jpg", "annotations/{n}.png")(tmp_path / "data")
    (tmp_path / "data/classes.txt").write_text("tree\nsky\n")
    _, splits = written(tmp_path / "data", tmp_path)
    assert splits["val"].spec.class_names == ("tree", "sky") and splits["val"].spec.ignore == (0, 255)


@pytest.mark.parametrize("names", [("1.jpg", "2.jpg"), ("a/1.jpg", "b/c/2.jpg"), ("1.jpg", "2.png")])
def test_photographs_without_labels(names: tuple[str, ...], tmp_path: Path) -> None:
    for n, name in enumerate(names):
        photo(tmp_path / "data" / name, n)
    (tmp_path / "data/classes.txt").write_text("tree\nsky\n")
    layout, splits = written(tmp_path / "data", tmp_path)
    assert layout.title == "photographs without labels" and not layout.labeled
    assert len(splits["val"]) == 2 and splits["val"].samples.unlabeled


def test_folders_in_which_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no images there"):
        detect_layout(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        detect_layout(tmp_path / "notes.txt")


def test_pictures_are_no_labels(tmp_path: Path) -> None:
    for n in range(4):
        photo(tmp_path / f"images/{n}.jpg", n)
        photo(tmp_path / f"masks/{n}.png", n + 10)
    with pytest.raises(InputError, match="colors in 4 label images: these are pictures"):
        detect_layout(tmp_path)


def test_every_and_exclude_every(tmp_path: Path) -> None:
    folders("images/{n}.jpg", "annotations/{n}.png", count=1)(tmp_path / "data")
    (tmp_path / "m.toml").write_text(manifest_text("one", detect_layout(tmp_path / "data")))
    with pytest.raises(InputError, match="exclude_every = 5: leaves none of 1 images"):
        Dataset(load_manifest(tmp_path / "m.toml"), tmp_path / "data", "train")
