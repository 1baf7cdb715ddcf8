"""Preparations against the scripts they stand for: cityscapesscripts itself, slow loops for the others."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.datasets import making
from tests.datasets.test_dataset import fails
from tests.datasets.test_objects import random_polygons
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.datasets.prepare import PRODUCTS, prepare, work
from vitp_pipeline.errors import InputError, PartialError, UsageError
from vitp_pipeline.stages.train_classifier import train_classifier
from vitp_pipeline.storage import atomic_files


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def bytes_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write_cityscapes(root: Path, count: int = 3) -> None:
    """Frames of random blocks: stuff, things with numbers, groups (crowds), things that do not count, and void."""
    rng = np.random.default_rng(0)
    values = [0, 1, 4, 7, 8, 11, 18, 23, 24, 26, 33, 24000, 24001, 26000, 26013, 29000, 33002, 31000]
    for n in range(count):
        frame = f"ulm_{n:06d}_000019"
        instances = rng.choice(values, (8, 12)).repeat(4, 0).repeat(3, 1).astype(np.uint16)
        labels = np.where(instances < 1000, instances, instances // 1000).astype(np.uint8)
        folder = root / "gtFine/val/ulm"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(instances).save(folder / f"{frame}_gtFine_instanceIds.png")
        making.write_png(folder / f"{frame}_gtFine_labelIds.png", labels)
        (folder / f"{frame}_gtFine_polygons.json").write_text(json.dumps(random_polygons(n)))
        making.write_png(root / f"leftImg8bit/val/ulm/{frame}_leftImg8bit.png", np.zeros((32, 36, 3), np.uint8))


def test_cityscapes_panoptic_is_that_of_cityscapesscripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    write_cityscapes(tmp_path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    script.convert2panoptic(str(tmp_path / "gtFine"), str(theirs), setNames=["val"])
    prepare("cityscapes", tmp_path, ["panoptic"], "val", workers=2)
    for path in sorted((theirs / "cityscapes_panoptic_val").iterdir()):
        assert np.array_equal(read(path), read(tmp_path / "gtFine/cityscapes_panoptic_val" / path.name))
    expected = json.loads((theirs / "cityscapes_panoptic_val.json").read_text())
    found = json.loads((tmp_path / "gtFine/cityscapes_panoptic_val.json").read_text())
    assert found["images"] == expected["images"] and found["annotations"] == expected["annotations"]
    wanted = ("id", "name", "isthing", "color")
    assert found["categories"] == [{k: c[k] for k in wanted} for c in expected["categories"]]
    assert any(s["iscrowd"] for a in found["annotations"] for s in a["segments_info"])
    data = Dataset(load_manifest("cityscapes-panoptic"), tmp_path, "val")
    semantic = Dataset(load_manifest("cityscapes"), tmp_path, "val")
    for one, other in zip(data.samples, semantic.samples, strict=True):
        assert one.image == other.image and one.image_id == other.image_id
        assert np.array_equal(data.read_semantic(one), semantic.read_semantic(other))


def test_cityscapes_train_ids_are_those_of_cityscapesscripts(tmp_path: Path) -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    write_cityscapes(tmp_path)
    prepare("cityscapes", tmp_path, ["train-ids"])
    lut = np.array([labels.id2label[i].trainId for i in range(34)])
    paths = sorted((tmp_path / "gtFine/val/ulm").glob("*_labelIds.png"))
    for path in paths:
        assert np.array_equal(read(path.with_name(path.name.replace("labelIds", "labelTrainIds"))), lut[read(path)])
        path.unlink()
    prepare("cityscapes", tmp_path, ["label-ids"])
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    annotation = Annotation()
    annotation.fromJsonFile(str(paths[0]).replace("labelIds.png", "polygons.json"))
    assert np.array_equal(read(paths[0]), np.asarray(createLabelImage(annotation, "ids")))


def test_a_second_run_makes_nothing_and_an_archive_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cityscapes(tmp_path)
    with zipfile.ZipFile(tmp_path / "gtFine_trainvaltest.zip", "w") as target:
        for path in sorted((tmp_path / "gtFine").rglob("*.*")):
            target.write(path, path.relative_to(tmp_path).as_posix())
            path.unlink()
    before = bytes_below(tmp_path)
    prepare("cityscapes", tmp_path, [])
    first = bytes_below(tmp_path)
    made = sorted(set(first) - set(before))
    assert before.items() <= first.items() and len(made) == 3 + 3 + 1  # train ids, panoptic PNGs and their JSON
    assert all(name.startswith("gtFine/") for name in made)
    capsys.readouterr()
    prepare("cityscapes", tmp_path, [])
    summaries = [line for line in capsys.readouterr().err.splitlines() if "files made" in line]
    assert bytes_below(tmp_path) == first and len(summaries) == 3 and all(" 0 files made" in s for s in summaries)
    data = Dataset(load_manifest("cityscapes-panoptic"), tmp_path, "val")
    assert data.read_panoptic(data.samples[0])[0].shape == (32, 36)


# ---- ADE20K ---------------------------------------------------------------------------------------------------------


def write_ade20k(root: Path, count: int = 4) -> None:
    """Semantic labels 0..150 in blocks; instances over parts of the things, and over some stuff too."""
    rng = np.random.default_rng(1)
    spec = load_manifest("ade20k")
    things = [k for k, thing in enumerate(spec.things) if thing]
    for n in range(count):
        name = f"ADE_val_{n + 1:08d}"
        labels = rng.integers(0, 151, (6, 7)).repeat(5, 0).repeat(4, 1).astype(np.uint8)
        instances = np.zeros((*labels.shape, 3), np.uint8)
        for number in range(1, 6 if n else 1):  # the first image has none
            top, left = int(rng.integers(25)), int(rng.integers(24))
            kind = int(rng.integers(100))
            instances[top : top + 7, left : left + 5] = (kind + 1, 40 * number, 0)
            if number % 2:
                labels[top : top + 7, left : left + 5] = things[kind] + 1
        making.write_png(root / f"annotations/validation/{name}.png", labels)
        making.write_png(root / f"annotations_instance/validation/{name}.png", instances)
        making.write_png(root / f"images/validation/{name}.jpg", np.zeros((*labels.shape, 3), np.uint8))


def expected_ade20k(root: Path, name: str) -> tuple[np.ndarray, dict[int, Any], dict[int, Any]]:
    """By the words of the format: a map of (category, object) as one number, stuff by category, objects by number."""
    spec = load_manifest("ade20k")
    things = [k for k, thing in enumerate(spec.things) if thing]
    labels = read(root / f"annotations/validation/{name}.png").astype(int)
    instances = read(root / f"annotations_instance/validation/{name}.png").astype(int)
    pairs, stuff, objects = np.full(labels.shape, -1), {}, {}
    for row in range(labels.shape[0]):
        for col in range(labels.shape[1]):
            k = labels[row, col] - 1
            if k >= 0 and not spec.things[k]:
                pairs[row, col] = k * 1000
                stuff.setdefault(k, []).append((row, col))
            if instances[row, col, 1]:
                k = things[instances[row, col, 0] - 1]
                pairs[row, col] = k * 1000 + instances[row, col, 1]
                objects.setdefault(int(instances[row, col, 1]), (k, []))[1].append((row, col))
    return pairs, stuff, objects


def box_of(pixels: list[tuple[int, int]]) -> list[int]:
    rows, cols = [r for r, _ in pixels], [c for _, c in pixels]
    return [min(cols), min(rows), max(cols) - min(cols) + 1, max(rows) - min(rows) + 1]


def test_ade20k_panoptic_and_instances(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    write_ade20k(root)
    prepare("ade20k", tmp_path, [])
    panoptic = json.loads((root / "ade20k_panoptic_val.json").read_text())
    instance = json.loads((root / "ade20k_instance_val.json").read_text())
    assert [i["id"] for i in panoptic["images"]] == [i["id"] for i in instance["images"]]
    assert len(panoptic["categories"]) == 150 and len(instance["categories"]) == 100
    assert sum(c["isthing"] for c in panoptic["categories"]) == 100
    assert sorted(a["id"] for a in instance["annotations"]) == list(range(1, len(instance["annotations"]) + 1))
    for entry in panoptic["annotations"]:
        pairs, stuff, objects = expected_ade20k(root, entry["image_id"])
        rgb = read(root / "ade20k_panoptic_val" / entry["file_name"]).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        category = {s["id"]: s["category_id"] for s in entry["segments_info"]}
        assert np.array_equal(ids == 0, pairs == -1)
        mapping = {(int(i), int(p)) for i, p in zip(ids.ravel(), pairs.ravel(), strict=True)}
        assert len(mapping) == len({i for i, _ in mapping}) == len({p for _, p in mapping})  # the same regions
        assert all(category[i] == p // 1000 for i, p in mapping if i)
        found = [(s["category_id"], s["area"], s["bbox"]) for s in entry["segments_info"]]
        wanted = [(k, len(pixels), box_of(pixels)) for k, pixels in stuff.items()]
        wanted += [(k, len(pixels), box_of(pixels)) for k, pixels in objects.values()]
        assert sorted(found) == sorted(wanted)
        own = [a for a in instance["annotations"] if a["image_id"] == entry["image_id"]]
        assert len(own) == len(objects)
        for annotation, (_, (k, pixels)) in zip(own, sorted(objects.items()), strict=True):
            mask = coco_mask.decode(annotation["segmentation"])
            assert annotation["category_id"] == k and annotation["area"] == mask.sum() == len(pixels)
            assert {tuple(p) for p in np.argwhere(mask).tolist()} == set(pixels)
            assert annotation["bbox"] == box_of(pixels)
    semantic = read(root / "annotations_detectron2/validation/ADE_val_00000001.png")
    raw = read(root / "annotations/validation/ADE_val_00000001.png")
    assert np.array_equal(semantic, raw - 1)  # in uint8: 0 becomes 255


def test_ade20k_products_are_read_by_their_manifests(tmp_path: Path) -> None:
    write_ade20k(tmp_path)
    prepare("ade20k", tmp_path, [], "val")
    panoptic = Dataset(load_manifest("ade20k-panoptic"), tmp_path, "val")
    instance = Dataset(load_manifest("ade20k-instance"), tmp_path, "val")
    things = instance.spec.class_names
    for one, other in zip(panoptic.samples, instance.samples, strict=True):
        ids, segments = panoptic.read_panoptic(one)
        visible = [s for s in segments if panoptic.spec.things[s.category]]
        found = instance.read_instances(other)
        assert [panoptic.spec.class_names[s.category] for s in visible] == [things[f.category] for f in found]
        for segment, thing in zip(visible, found, strict=True):
            assert np.array_equal(ids == segment.id, thing.mask)


def test_a_broken_source_is_named_the_rest_is_made_and_fixing_it_finishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ade20k(tmp_path)
    path = tmp_path / "annotations_instance/validation/ADE_val_00000003.png"
    good = path.read_bytes()
    wrong = read(path).copy()
    wrong[wrong[..., 1] == 40] = (0, 40, 0)
    making.write_png(path, wrong)
    with fails(PartialError, "1 of 4"):
        prepare("ade20k", tmp_path, ["panoptic", "instances"]).report()
    assert "ADE_val_00000003.png: object 40 has the class 0, known are 1..100" in capsys.readouterr().err
    assert len(list((tmp_path / "ade20k_panoptic_val").glob("*.png"))) == 3
    assert not (tmp_path / "ade20k_panoptic_val.json").exists()
    path.write_bytes(good)
    prepare("ade20k", tmp_path, ["panoptic", "instances"])
    assert len(json.loads((tmp_path / "ade20k_panoptic_val.json").read_text())["annotations"]) == 4


def test_a_kill_at_any_file_leaves_whole_files_and_the_rerun_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PART", 2)
    write_ade20k(tmp_path / "whole")
    prepare("ade20k", tmp_path / "whole", ["panoptic", "instances"])
    expected = bytes_below(tmp_path / "whole")
    write_ade20k(tmp_path / "killed")

    class Killed(BaseException):
        pass

    kills = 0
    while True:
        left = 2  # so many files a life

        def dying(path: Path, write: Any) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            atomic_files.write_whole(path, write)

        monkeypatch.setattr(work, "write_whole", dying)
        try:
            prepare("ade20k", tmp_path / "killed", ["panoptic", "instances"])
            break
        except Killed:
            kills += 1
            found = bytes_below(tmp_path / "killed")
            assert all(expected[name] == content for name, content in found.items() if "piece" not in name)
    assert kills >= 3 and bytes_below(tmp_path / "killed") == expected


def test_ade20k_without_instances_says_what_is_missing_and_for_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ade20k(tmp_path, 2)
    shutil.rmtree(tmp_path / "annotations_instance")
    prepared = prepare("ade20k", tmp_path, [])
    said = capsys.readouterr().err
    assert [(p.product, p.split, len(p.written)) for p in prepared.products] == [("semantic", "val", 2)]
    assert [(one.product, one.split) for one in prepared.lacking] == [("panoptic", "val"), ("instances", "val")]
    for words in (
        "annotations_instance/validation",
        "annotations_instance.tar",
        "without it no panoptic maps, PQ and AP",
    ):
        assert words in said
    assert "train" not in said  # a split that is not there at all is not wanted
    with fails(InputError, "annotations_instance/training", "annotations_instance.tar"):
        prepare("ade20k", tmp_path, ["panoptic"])


@pytest.mark.parametrize("name", ["ade20k-panoptic", "ade20k-instance", "cityscapes-panoptic"])
def test_missing_derived_files_name_the_command_that_makes_them(tmp_path: Path, name: str) -> None:
    root = tmp_path / "my data"
    (root / "images/validation").mkdir(parents=True)
    spec = load_manifest(name)
    assert spec.prepare in PRODUCTS and spec.prepare == name.split("-")[0]
    with fails(InputError, f"vitp prepare {spec.prepare} --data-root '{root}'"):
        Dataset(spec, root, "val")


def test_the_panoptic_recipe_names_the_command_too(tmp_path: Path) -> None:
    recipe = load_recipe("paper/ade20k-oneformer-dinat-l-panoptic")
    with fails(InputError, "vitp prepare ade20k"):
        train_classifier(recipe, recipe.stage(TrainSettings), tmp_path, tmp_path / "run")


# ---- COCO -----------------------------------------------------------------------------------------------------------


def write_coco(root: Path) -> dict[str, Any]:
    """Two images of categories 1 (person, one of them a crowd), 18 (dog) and 200 (rug)."""
    rng = np.random.default_rng(2)
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for number in (139, 285):
        name = f"{number:012d}"
        ids = rng.choice([0, 7000, 300, 16_000_000, 5], (5, 6)).repeat(4, 0).repeat(3, 1)
        making.write_png(root / f"panoptic_val2017/{name}.png", making.ids_to_rgb(ids))
        making.write_png(root / f"val2017/{name}.jpg", np.zeros((*ids.shape, 3), np.uint8))
        kinds = {7000: (1, 0), 300: (1, 1), 16_000_000: (18, 0), 5: (200, 0)}
        segments = [
            {"id": i, "category_id": k, "iscrowd": crowd, "area": int((ids == i).sum()), "bbox": [0, 0, 18, 20]}
            for i, (k, crowd) in kinds.items()
            if (ids == i).any()
        ]
        image = {"id": number, "file_name": f"{name}.jpg", "height": 20, "width": 18}
        data["images"].append(image)
        data["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(data))
    return data


def test_coco_semantic_and_instances(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    prepare("coco", tmp_path, [])
    spec = load_manifest("coco-panoptic")
    number_of = {c.label: k for k, c in enumerate(spec.classes)}
    found = json.loads((tmp_path / "coco/annotations/panoptic2instances_val2017.json").read_text())
    assert [i["id"] for i in found["images"]] == [139, 285] and len(found["categories"]) == 80
    assert [a["id"] for a in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
    wanted = []
    for entry in data["annotations"]:
        rgb = read(tmp_path / "coco/panoptic_val2017" / entry["file_name"]).astype(int)
        ids = rgb @ [1, 256, 65536]
        expected = np.full(ids.shape, 255)
        for segment in entry["segments_info"]:
            expected[ids == segment["id"]] = number_of[segment["category_id"]]
            if segment["category_id"] < 92:
                wanted.append((entry["image_id"], segment["category_id"], segment["iscrowd"], ids == segment["id"]))
        semantic = read(tmp_path / "coco/panoptic_semseg_val2017" / entry["file_name"])
        assert semantic.dtype == np.uint8 and np.array_equal(semantic, expected)
    for annotation, (image, category, crowd, mask) in zip(found["annotations"], wanted, strict=True):
        assert (annotation["image_id"], annotation["category_id"], annotation["iscrowd"]) == (image, category, crowd)
        assert np.array_equal(coco_mask.decode(annotation["segmentation"]), mask) and annotation["area"] == mask.sum()


COCO_NAMES: dict[str, list[tuple[str, str]]] = {
    "plain": [("1.jpg", "1.png"), ("2.jpg", "2.png")],
    "folders of images": [("a/1.jpg", "1.png"), ("b/1.jpg", "2.png")],
    "folders of labels": [("1.jpg", "a/1.png"), ("2.jpg", "b/1.png")],
    "folders of both": [("a/1.jpg", "a/1.png"), ("b/1.jpg", "b/1.png"), ("b/2.jpg", "b/2.png")],
    "folders crosswise": [("a/1.jpg", "b/1.png"), ("b/1.jpg", "a/1.png")],
    "folders in folders": [("x/a/1.jpg", "x/a/1.png"), ("y/a/1.jpg", "y/a/1.png")],
    "with and without": [("1.jpg", "1.png"), ("a/1.jpg", "a/1.png"), ("a/a/1.jpg", "a/a/1.png")],
    "endings": [("1.jpg", "1.jpg.png"), ("1.png", "1.png.png"), ("1.bmp", "1.bmp.png")],
    "cases": [("a/1.jpg", "a/1.png"), ("A/1.jpg", "A/1.png")],
    "names of folders": [("a.png/1.jpg", "a.png/1.png"), ("a.jpg/1.jpg", "a.jpg/1.png")],
    "odd characters": [("ü /1.jpg", "ü /1.png"), ("%2F/1.jpg", "%2F/1.png"), ("{id}/1.jpg", "{id}/1.png")],
}


@pytest.mark.parametrize("name", COCO_NAMES)
def test_coco_names_keep_their_folders(tmp_path: Path, name: str) -> None:
    root, label, rows = tmp_path / "coco", load_manifest("coco-panoptic").classes[0].label, 8
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for number, (image, png) in enumerate(COCO_NAMES[name], 1):  # of the first class, as many rows as its number
        ids = np.zeros((rows, 6), np.int64)
        ids[:number] = 7
        making.write_png(root / "panoptic_val2017" / png, making.ids_to_rgb(ids))
        making.write_png(root / "val2017" / image, np.zeros((rows, 6, 3), np.uint8))
        data["images"].append({"id": number, "file_name": image, "height": rows, "width": 6})
        segments = [{"id": 7, "category_id": label, "iscrowd": 0, "area": 6 * number, "bbox": [0, 0, 6, number]}]
        data["annotations"].append({"image_id": number, "file_name": png, "segments_info": segments})
    (root / "annotations").mkdir()
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(data))
    for again in (False, True):
        made = prepare("coco", tmp_path, []).products
        assert [len(product.written) for product in made] == ([0, 0] if again else [len(COCO_NAMES[name]), 1])
    for number, (_, png) in enumerate(COCO_NAMES[name], 1):
        assert int((read(root / "panoptic_semseg_val2017" / png) == 0).sum()) == 6 * number
    found = json.loads((root / "annotations/panoptic2instances_val2017.json").read_text())
    assert [image["file_name"] for image in found["images"]] == [image for image, _ in COCO_NAMES[name]]
    for image, entry in zip(found["images"], found["annotations"], strict=True):
        assert coco_mask.decode(entry["segmentation"]).sum() == 6 * image["id"]
        assert (root / "val2017" / image["file_name"]).is_file()


def test_coco_images_of_one_label_file_are_not_prepared(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    data["annotations"][1]["file_name"] = data["annotations"][0]["file_name"]
    (tmp_path / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(data))
    prepared = prepare("coco", tmp_path, [])
    reasons = [reason for product in prepared.products for reason in product.failed]
    words = ("'000000000139.png' is that of image 000000000", "would both become")
    assert len(reasons) == 4 and all(any(word in reason for word in words) for reason in reasons)
    with fails(PartialError, "all 2 images failed"):
        prepared.report()


def test_cityscapes_frames_of_one_name_are_not_prepared(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, 1)
    (tmp_path / "gtFine/val/bonn").mkdir()
    for path in sorted((tmp_path / "gtFine/val/ulm").iterdir()):
        (tmp_path / "gtFine/val/bonn" / path.name).write_bytes(path.read_bytes())
    with fails(PartialError, "1 of 2 images failed"):
        prepare("cityscapes", tmp_path, ["panoptic"]).report()
    assert not (tmp_path / "gtFine/cityscapes_panoptic_val.json").exists()


def test_coco_stuff_train_ids(tmp_path: Path) -> None:
    spec = load_manifest("coco-stuff")
    values = np.array([c.label for c in spec.classes] + [255], np.uint8)
    raw = np.random.default_rng(3).permutation(np.resize(values, (12, 20)).ravel()).reshape(12, 20)
    making.write_png(tmp_path / "coco_stuff164k/annotations/val2017/1.png", raw)
    for _ in range(2):  # the second run must not take its own products for sources
        prepare("coco-stuff", tmp_path, [])
        folder = tmp_path / "coco_stuff164k/annotations/val2017"
        assert sorted(p.name for p in folder.iterdir()) == ["1.png", "1_labelTrainIds.png"]
    made = read(folder / "1_labelTrainIds.png")
    rank = {int(v): k for k, v in enumerate(values[:-1])} | {255: 255}
    assert np.array_equal(made, [[rank[int(v)] for v in row] for row in raw])
    raw[0, 0] = 11  # no class of the 171
    making.write_png(folder / "2.png", raw)
    with fails(PartialError, "1 of 2"):
        prepare("coco-stuff", tmp_path, []).report()


def test_nothing_to_prepare(tmp_path: Path) -> None:
    with fails(UsageError, "'objects365'", "ade20k"):
        prepare("objects365", tmp_path, [])
    with fails(UsageError, "--only", "panoptic"):
        prepare("cityscapes", tmp_path, ["instances"])
    with fails(UsageError, "--split", "train_extra"):
        prepare("cityscapes", tmp_path, [], "trian")
    for dataset in ("ade20k", "cityscapes", "coco", "coco-stuff"):
        with fails(InputError, dataset, "--data-root"):
            prepare(dataset, tmp_path, [])
    with fails(InputError, "nowhere"):
        prepare("coco", tmp_path / "nowhere", [])
