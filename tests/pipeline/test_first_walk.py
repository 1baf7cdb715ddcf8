"""From a folder to a result with nothing typed but `vitp init` and what it says is next: real images, four layouts."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.conftest import Vitp
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import load_manifest

CAMVID, COCO = (f"mask2former-efficientnet_lite0-{name}" for name in ("camvid", "coco-sample"))
COUNT = int(os.environ.get("VITP_WALK_IMAGES", "6"))
FEWER = () if COUNT > 6 else ("--set", "image_size=[112,140]")
"""What the test adds to the run's line, so that it takes seconds."""


@pytest.fixture
def place(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and the weights."""
    monkeypatch.setenv("VITP_WEIGHTS", str(shared / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def next_line(shown: str) -> list[str]:
    """The words of the command that an output says is next."""
    (line,) = [line for line in shown.splitlines() if line.startswith("next: vitp ")]
    return shlex.split(line.removeprefix("next: vitp "))


def camvid(shared: Path) -> list[Path]:
    return sorted((shared / "data/camvid/images/val").glob("*.jpg"))[:COUNT]


def by_value(shared: Path, folder: Path) -> None:
    for image in camvid(shared):
        for kind, name in (("images", image.name), ("annotations", f"{image.stem}.png")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(shared / "data/camvid" / kind / "val" / name, folder / kind / name)


def by_color(shared: Path, folder: Path) -> None:
    """VOC's folders; labels as RGB in CamVid's colors, which no file explains, and black where there is none."""
    colors = np.array([info.color for info in load_manifest("camvid").classes] + [(0, 0, 0)], np.uint8)
    for image in camvid(shared):
        for kind in ("JPEGImages", "SegmentationClass"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / "JPEGImages" / image.name)
        labels = np.asarray(Image.open(shared / "data/camvid/annotations/val" / f"{image.stem}.png"))
        Image.fromarray(colors[labels]).save(folder / "SegmentationClass" / f"{image.stem}.png")


def instances(shared: Path, folder: Path) -> None:
    """The objects of COCO's panoptic labels as polygons' run lengths, with the 80 categories that are things."""
    from pycocotools import mask

    said = json.loads((shared / "data/coco/annotations/panoptic_val2017.json").read_text())
    categories = [c for c in said["categories"] if c["isthing"]]
    things = {c["id"] for c in categories}
    chosen = {image["id"]: image for image in said["images"][:COUNT]}
    found = []
    (folder / "photos").mkdir(parents=True)
    for entry in (e for e in said["annotations"] if e["image_id"] in chosen):
        shutil.copy(shared / "data/coco/val2017" / chosen[entry["image_id"]]["file_name"], folder / "photos")
        rgb = np.asarray(Image.open(shared / "data/coco/panoptic_val2017" / entry["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]
        for segment in (s for s in entry["segments_info"] if s["category_id"] in things):
            rle = mask.encode(np.asfortranarray(ids == segment["id"], np.uint8))
            rle["counts"] = rle["counts"].decode()
            about = {"id": len(found) + 1, "image_id": entry["image_id"], "category_id": segment["category_id"]}
            found.append({**about, "iscrowd": 0, "bbox": segment["bbox"], "area": segment["area"], "segmentation": rle})
    content = {"images": list(chosen.values()), "annotations": found, "categories": categories}
    (folder / "result.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "generator", "seen"),
    [
        (by_value, CAMVID, "label images, 11 classes"),
        (by_color, CAMVID, "PASCAL VOC, 11 classes"),
        (instances, COCO, "COCO instances, 133 classes"),
    ],
    ids=["values", "colors", "coco-instances"],
)
def test_figures(
    make: Callable[[Path, Path], None], generator: str, seen: str, shared: Path, place: Path, vitp: Vitp
) -> None:
    make(shared, place / "photos")
    shown = vitp("init", "photos", "--generator", generator, "--yes", "--device", "cpu")
    assert f"seen: {seen}, splits train and val" in shown and "to do" not in shown
    spec = load_recipe(place / "photos.toml").manifest
    if generator == CAMVID:
        wanted = load_manifest("camvid")
        assert spec.class_names == wanted.class_names and spec.things == wanted.things
    line = next_line(shown)
    assert line[:2] == ["run", "photos.toml"] and line[-1] == "--report"
    shown = vitp(*line, *FEWER)
    (result,) = (json.loads(path.read_text()) for path in place.glob("runs/photos/evaluation/*/result.json"))
    assert result["images"]["measured"] == -(-COUNT // 5)
    figures = {name: result["semantic"][name]["mIoU"] for name in ("generator", "fused", "upper_bound_mask")}
    print(seen, figures)
    if generator == CAMVID:
        assert min(figures.values()) > 0.3
    else:  # nothing is learned of 133 classes from four photographs
        assert figures["generator"] > 0.02 and figures["upper_bound_mask"] > 0.2
    assert "report: runs/photos/report.html" in shown and (place / "runs/photos/report.html").stat().st_size > 10**6


@pytest.mark.slow
def test_photographs_without_labels(shared: Path, place: Path, vitp: Vitp) -> None:
    (place / "photos").mkdir()
    for image in camvid(shared)[:2]:
        shutil.copy(image, place / "photos")
    shown = vitp("init", "photos", "--generator", CAMVID, "--yes", "--device", "cpu")
    assert "seen: photographs without labels, 11 classes, splits val" in shown and "to do" not in shown
    line = next_line(shown)
    assert "--report" not in line
    shown = vitp(*line)
    assert "no figures: its manifest names no `labels`" in shown
    (folder,) = place.glob("runs/photos/exports/label-png-*/results")
    assert f"exported: {folder.relative_to(place)}" in shown
    for image in camvid(shared)[:2]:
        truth = np.asarray(Image.open(shared / "data/camvid/annotations/val" / f"{image.stem}.png"))
        labels = np.asarray(Image.open(folder / f"{image.stem}.png"))
        assert (labels == truth)[truth < 11].mean() > 0.8


def test_nothing_is_overwritten_and_what_is_missing_is_said(place: Path, shared: Path, vitp: Vitp) -> None:
    by_value(shared, place / "photos")
    shown = vitp("init", "photos", "--yes")
    assert (
        "to do: name a generator in the recipe" in shown and "to do: name the classes in photos-dataset.toml" in shown
    )
    recipe = (place / "photos.toml").read_text()
    assert "is there already" in vitp("init", "photos", "--yes", code=2)
    assert (place / "photos.toml").read_text() == recipe
    vitp("init", "photos", "--yes", "--overwrite")
    assert "the recipe names no generator yet" in vitp(*next_line(shown), code=2)
    assert "this file does not exist" in vitp(
        "init", "photos", "--generator", "nowhere/m2f.py", "--out", "a.toml", code=3
    )
    assert not (place / "a.toml").exists() and not (place / "a-dataset.toml").exists()
