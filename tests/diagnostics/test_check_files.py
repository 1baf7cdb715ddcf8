from __future__ import annotations

import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.datasets import making
from tests.datasets.test_dataset import GOOD, fails
from tests.datasets.test_objects import instances_spec, write_instances
from vitp_pipeline.cli.app import app
from vitp_pipeline.config.recipe import manifest_of
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.diagnostics.check_dataset import check_dataset
from vitp_pipeline.diagnostics.check_files import as_dict, check_split, spread
from vitp_pipeline.diagnostics.contact_sheet import draw_sheet
from vitp_pipeline.errors import InputError

SEMANTIC = """
name = "toy"
classes = [
  { name = "sky", label = 1, thing = false, color = [1, 2, 255] },
  { name = "road", label = 2, thing = false, color = [1, 250, 3] },
  { name = "car", label = 3, thing = true, color = [240, 2, 3] },
  { name = "tram", label = 9, thing = true },
]
[labels]
kind = "semantic-png"
ignore = [0, 255]
[splits.train]
images = "images/*.*"
labels = "labels/{stem}.png"
[splits.test]
images = "test/*.*"
labels = "test_labels/{stem}.png"
"""


def checked(dataset: Dataset, **options: Any) -> dict[str, Any]:
    return as_dict(check_split(dataset, **options), dataset)


def test_counts_are_those_of_a_slow_loop(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path, 7)
    found = checked(Dataset(spec, tmp_path, "train"), workers=3)
    pixels, images, sizes = Counter(), Counter(), Counter()
    for path in sorted((tmp_path / "labels").iterdir()):
        labels = np.asarray(Image.open(path))
        sizes[f"{labels.shape[1]}x{labels.shape[0]}"] += 1
        images.update(set(labels.ravel().tolist()))
        pixels.update(labels.ravel().tolist())
    assert {c["label"]: c["pixels"] for c in found["classes"]} == {k: pixels[k] for k in (1, 2, 3)}
    assert {c["label"]: c["images"] for c in found["classes"]} == {k: images[k] for k in (1, 2, 3)}
    assert (
        found["sizes"] == dict(sizes)
        and found["image_modes"] == {"RGB": 7}
        and found["label_modes"] == {"8-bit gray": 7}
    )
    assert math.isclose(found["ignored_share"], pixels[255] / sum(pixels.values()))
    assert found["broken"] == found["odd"] == found["unlabeled"] == found["missing"] == []
    json.dumps(found)


def test_everything_that_is_wrong_is_named(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path, 10)
    data = Dataset(spec, tmp_path, "train")
    labels = tmp_path / "labels"
    (labels / "a0.png").unlink()
    making.truncate(tmp_path / "images/a1.png", 0.5)
    making.truncate(labels / "a2.png", 0.5)
    raw = np.asarray(Image.open(labels / "a3.png")).copy()
    raw[2, 3:6] = 77
    making.write_png(labels / "a3.png", raw)
    making.write_png(labels / "a4.png", np.ones((5, 6), np.uint8))
    making.write_png(labels / "a5.png", np.full((28, 36, 3), (1, 2, 3), np.uint8))
    Image.fromarray(np.full((28, 36), 4000, np.uint16)).save(tmp_path / "images/a6.png")
    shape = np.asarray(Image.open(labels / "a7.png")).shape
    making.write_png(labels / "a7.png", np.full(shape, 255, np.uint8))
    making.write_png(labels / "z.png", np.ones((5, 6), np.uint8))
    found = checked(data)
    reasons = {entry["image_id"]: entry["reason"] for entry in found["broken"]}
    assert set(reasons) == {f"a{i}" for i in range(7)}
    words = ["labels/a0.png", "images/a1.png", "labels/a2.png", "77", "6×5", "RGB", "8 bits"]
    for i, word in enumerate(words):
        assert word in reasons[f"a{i}"] and f"a{i}.png" in reasons[f"a{i}"]
    assert found["unknown"] == {"77": {"images": 1, "pixels": 3}}
    assert found["unlabeled"] == ["a7"] and found["labels_without_image"] == [str(labels / "z.png")]
    assert found["images"] == found["checked"] == 10


def test_panoptic_counts_and_faults(tmp_path: Path) -> None:
    spec, annotation = making.write_coco(tmp_path)
    data = Dataset(spec, tmp_path, "val")
    found = checked(data)
    segments = [s for a in annotation["annotations"] for s in a["segments_info"]]
    assert {c["label"]: c["objects"] for c in found["classes"]} == Counter(s["category_id"] for s in segments)
    total = sum(
        np.asarray(Image.open(s.label)).shape[0] * np.asarray(Image.open(s.label)).shape[1] for s in data.samples
    )
    assert math.isclose(found["ignored_share"], 4 / total) and found["broken"] == []
    ids, _ = data.read_panoptic(data.samples[2])
    ids[3, 3] = 123456
    making.write_png(tmp_path / "panoptic_val/000153.png", making.ids_to_rgb(ids))
    annotation["annotations"][3]["segments_info"].append({"id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]})
    annotation["images"][0]["height"] += 1
    making.write_annotations(tmp_path, annotation)
    found = checked(Dataset(spec, tmp_path, "val"))
    reasons = {entry["image_id"]: entry["reason"] for entry in found["broken"]}
    assert set(reasons) == {"139", "153"} and "123456" in reasons["153"] and "annotation file says" in reasons["139"]
    (odd,) = found["odd"]
    assert odd["image_id"] == "160" and "no pixel" in odd["reason"]


def test_instances_and_boxes(tmp_path: Path) -> None:
    annotation = write_instances(tmp_path)
    found = checked(Dataset(instances_spec(), tmp_path, "val"))
    assert [c["objects"] for c in found["classes"]] == [1, 1, 1] and found["label_modes"] == {"masks": 2}
    assert found["unlabeled"] == ["8"] and found["broken"] == []
    annotation["annotations"][0]["bbox"] = [5, 5, 0, 3]
    annotation["annotations"][1]["bbox"] = [70, 5, 2, 3]
    for entry in annotation["annotations"]:
        del entry["segmentation"]
    (tmp_path / "instances.json").write_text(json.dumps(annotation))
    found = checked(Dataset(instances_spec(), tmp_path, "val"))
    assert [entry["reason"].split(" of ")[0][-2:] for entry in found["odd"]] == ["50", "51"]
    assert "empty box" in found["odd"][0]["reason"] and "outside" in found["odd"][1]["reason"]
    assert found["label_modes"] == {"boxes": 2} and found["ignored_share"] is None


def test_a_limit_is_spread_evenly(tmp_path: Path) -> None:
    data = Dataset(making.write_semantic(tmp_path, 9), tmp_path, "train")
    assert [s.image_id for s in spread(data.samples, 3)] == ["a0", "a3", "a6"]
    assert spread(data.samples, 0) == spread(data.samples, 99) == data.samples
    assert checked(data, limit=4)["checked"] == 4


def test_sheet_lays_the_class_colors_over_what_is_labeled(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(SEMANTIC)
    making.write_semantic(tmp_path, 1)
    making.write_png(tmp_path / "images/a0.png", np.full((28, 36, 3), 200, np.uint8))
    labels = np.full((28, 36), 255, np.uint8)
    labels[:, 18:] = 3
    making.write_png(tmp_path / "labels/a0.png", labels)
    data = Dataset(manifest_of(str(tmp_path / "m.toml"))[0], tmp_path, "train")
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet(data, data.samples, "toy train"))).convert("RGB")).astype(int)
    color = 200 + 0.6 * (np.array([240, 2, 3]) - 200)
    laid, plain = (np.abs(sheet[:, : 8 + 2 * 324] - shade).max(2) <= 1 for shade in (color, 200))  # image and fine
    area = 320 * round(320 * 28 / 36)
    assert abs(laid.sum() - area / 2) < 0.05 * area and abs(plain.sum() - 1.5 * area) < 0.05 * area
    (tmp_path / "labels/a0.png").unlink()
    failed = np.asarray(Image.open(io.BytesIO(draw_sheet(data, data.samples, "toy train"))))
    assert (failed == (255, 225, 225)).all(2).sum() > 10_000


@pytest.mark.parametrize("erosion", [0.2, 0.6])
def test_sheet_shows_fine_coarse_and_boxes_side_by_side(tmp_path: Path, erosion: float) -> None:
    """One car of 160×160 pixels in an image of the panels' size, so that their pixels are the image's."""
    (tmp_path / "m.toml").write_text(SEMANTIC)
    making.write_png(tmp_path / "images/a0.png", np.full((240, 320, 3), 200, np.uint8))
    labels = np.full((240, 320), 255, np.uint8)
    labels[40:200, 80:240] = 3
    making.write_png(tmp_path / "labels/a0.png", labels)
    data = Dataset(manifest_of(str(tmp_path / "m.toml"))[0], tmp_path, "train")
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet(data, data.samples, "toy", erosion))).convert("RGB")).astype(
        int
    )
    assert sheet.shape[1] == 4 * 324 - 4 + 2 * 8
    image, fine, coarse, boxes = (sheet[39:279, 8 + 324 * n : 328 + 324 * n] for n in range(4))
    color = np.array([240, 2, 3])
    assert (image == 200).all()
    laid, eroded = (np.abs(panel - (200 + 0.6 * (color - 200))).max(2) <= 1 for panel in (fine, coarse))
    assert (laid == (labels == 3)).all()
    assert eroded.any() and not (eroded & ~laid).any()
    away = 80 - erosion * 80  # the half side that remains
    assert eroded.sum() == pytest.approx((2 * away) ** 2, rel=0.05)
    rows, cols = np.nonzero((boxes == color).all(2))
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (40, 199, 80, 239)
    assert (boxes[60:180, 100:220] == 200).all()


def test_sheet_shows_coarse_files_and_why_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(
        SEMANTIC.replace(
            'labels = "labels/{stem}.png"', 'labels = "labels/{stem}.png"\nlabels_coarse = "coarse/{stem}.png"'
        )
    )
    labels, coarse = np.full((240, 320), 3, np.uint8), np.full((240, 320), 255, np.uint8)
    coarse[:, :100] = 2
    for name in ("a0", "a1"):
        making.write_png(tmp_path / f"images/{name}.png", np.full((240, 320, 3), 200, np.uint8))
        making.write_png(tmp_path / f"labels/{name}.png", labels)
    making.write_png(tmp_path / "coarse/a0.png", coarse)
    data = Dataset(manifest_of(str(tmp_path / "m.toml"))[0], tmp_path, "train")
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet(data, data.samples, "toy"))).convert("RGB")).astype(int)
    tile = 240 + 4 * 13 + 8
    first, second = (sheet[39 + n * tile : 279 + n * tile, 8 + 2 * 324 : 328 + 2 * 324] for n in range(2))
    road = 200 + 0.6 * (np.array([1, 250, 3]) - 200)
    assert ((np.abs(first - road).max(2) <= 1) == (coarse == 2)).all()
    assert (second == (255, 225, 225)).all(2).mean() > 0.7


def test_sheet_takes_the_erosion_of_the_recipe(tmp_path: Path) -> None:
    making.write_semantic(tmp_path, 1)
    (tmp_path / "m.toml").write_text(SEMANTIC)
    for name, erosion in (("little", 0.1), ("much", 0.7)):
        (tmp_path / f"{name}.toml").write_text(f'manifest = "m.toml"\n[train-classifier]\ncoarse_erosion = {erosion}\n')
        check_dataset(str(tmp_path / f"{name}.toml"), tmp_path, "train", tmp_path / f"{name}.png")
        data = Dataset(manifest_of(str(tmp_path / "m.toml"))[0], tmp_path, "train")
        assert (tmp_path / f"{name}.png").read_bytes() == draw_sheet(data, data.samples, "toy train", erosion)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    making.write_semantic(tmp_path)
    (tmp_path / "m.toml").write_text(SEMANTIC)
    arguments = ["check-dataset", str(tmp_path / "m.toml"), "--data-root", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out/sheet.png")])
    assert result.exit_code == 0
    assert "train: 4 images" in result.output and "missing: tram" in result.output
    assert (tmp_path / "out/sheet.train.png").is_file()
    result = CliRunner().invoke(app, [*arguments, "--split", "train", "--json"])
    report = json.loads(result.stdout[: result.stdout.rindex("}") + 1])
    assert report["splits"][0]["classes"][3] == {"name": "tram", "label": 9, "pixels": 0, "objects": None, "images": 0}
    (tmp_path / "labels/a1.png").unlink()
    with fails(InputError, "1 of 4"):
        check_dataset(str(tmp_path / "m.toml"), tmp_path)
    assert "BROKEN: " in (shown := capsys.readouterr().out) and "labels/a1.png" in shown
    with fails(InputError, "no images"):
        check_dataset(str(tmp_path / "m.toml"), tmp_path, "test")


def test_a_recipe_or_a_manifest(tmp_path: Path) -> None:
    spec, recipe = manifest_of("camvid")
    assert recipe is not None and spec.name == "camvid" and "generate-proposals" in recipe.tables
    assert manifest_of("ade20k")[1] is None and len(manifest_of("ade20k")[0].classes) == 150
    (tmp_path / "m.toml").write_text(GOOD)
    assert manifest_of(str(tmp_path / "m.toml"))[0].name == "x"
    with fails(InputError, "nope", "ade20k"):
        manifest_of("nope")


# ---- splits that cannot be read -------------------------------------------------------------------------------------

TWO_SPLITS = (
    making.COCO_MANIFEST + '[splits.other]\nimages = "val"\nlabels = "panoptic_val"\nannotations = "other.json"\n'
)


def encrypted(path: Path, name: str, content: bytes) -> None:
    """A zip archive whose member says that it is encrypted."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    whole = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        whole[whole.index(signature) + place] |= 1
    path.write_bytes(whole)


ODD_FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "not JSON": lambda whole: b"images: []",
    "a list": lambda whole: b"[" + whole + b"]",
    "a number": lambda whole: b"1",
    "no images": lambda whole: whole.replace(b'"images"', b'"pictures"'),
    "no categories": lambda whole: whole.replace(b'"categories"', b'"classes"'),
    "other classes": lambda whole: whole.replace(b'"sky"', b'"sea"'),
    "annotations of another type": lambda whole: whole.replace(b'"annotations": [', b'"annotations": 7, "x": ['),
    "too deep": lambda whole: b"[" * 100_000,
    "not UTF-8": lambda whole: b"\xff\xff" + whole,
}


@pytest.mark.parametrize("name", [*ODD_FILES, "encrypted", "a folder"])
def test_a_split_that_cannot_be_read_is_no_success(tmp_path: Path, name: str) -> None:
    """Others are looked at all the same; in JSON it stands with its reason."""
    making.write_coco(tmp_path, 2)
    whole = (tmp_path / "annotations/panoptic_val.json").read_bytes()
    manifest, where = TWO_SPLITS, tmp_path / "other.json"
    if name == "encrypted":
        encrypted(tmp_path / "other.zip", "other.json", whole)
        manifest, where = manifest.replace('"other.json"', '"other.zip/other.json"'), tmp_path / "other.zip"
    elif name == "a folder":
        where.mkdir()
        (tmp_path / "other.json" / "x").touch()
        manifest = manifest.replace('"other.json"', '"other.json/x"')
    else:
        where.write_bytes(ODD_FILES[name](whole))
    (tmp_path / "m.toml").write_text(manifest)
    result = CliRunner().invoke(
        app, ["check-dataset", str(tmp_path / "m.toml"), "--data-root", str(tmp_path), "--json"]
    )
    assert isinstance(result.exception, InputError) and str(where) in str(result.exception)
    found = json.loads(result.stdout)
    assert [split["split"] for split in found["splits"]] == ["val"] and found["splits"][0]["checked"] == 2
    assert str(where) in found["unreadable"]["other"] and found["absent"] == {}


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A manifest names more splits than most people have."""
    making.write_coco(tmp_path, 2)
    (tmp_path / "m.toml").write_text(TWO_SPLITS)
    result = CliRunner().invoke(
        app, ["check-dataset", str(tmp_path / "m.toml"), "--data-root", str(tmp_path), "--json"]
    )
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert "other.json: the annotation file does not exist" in found["absent"]["other"] and found["unreadable"] == {}
