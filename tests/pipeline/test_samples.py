"""Real samples of the paper's benchmarks through its own recipes: check-dataset, prepare, import-checkpoint, the four
stages, --by-class, and the exports, as the program's commands.

No released weights are at hand. OneFormers of the published layout but of tiny size with random weights stand in, under
the published files' names; classifiers are tiny and hardly trained. So figures mean nothing here: that they are there,
below their bounds, and of all images, is looked at.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generators.detectron2_making import TINY_HEAD, random_state, shapes_of
from vitp_pipeline.cli import main as cli
from vitp_pipeline.datasets import Dataset, load_manifest

pytestmark = pytest.mark.slow
Vitp = Callable[..., str]
TINY = (
    *("--set", "preset=", "--set", "backbone=vit_tiny_patch16_224", "--set", "weights=", "--set", "epochs=1"),
    *("--set", 'backbone_args={"embed_dim": 32, "depth": 2, "num_heads": 2}', "--set", "image_size=[64,128]"),
    *("--set", "batch_size=2", "--set", "points_per_image=16", "--set", "backbone_lr=0.01"),
)
SMALL = ("--set", "test_size=[96,192]", "--set", "multi=2")


@pytest.fixture
def vitp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vitp:
    """Runs a command in a folder of its own, where it must succeed; gives its standard output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()

    def run(*words: str | Path, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        found = 0
        try:
            cli.main()
        except SystemExit as stop:
            found = stop.code or 0
        out, err = capsys.readouterr()
        assert found == code, err
        return out

    return run


def publish(name: str, classes: int, model: str = "oneformer", backbone: str = "tiny-dinat") -> Path:
    """A file of detectron2 as its authors would publish it, tiny and random."""
    import torch

    head = dataclasses.replace(TINY_HEAD, classes=classes, queries=12)
    torch.save({"model": random_state(shapes_of(model, backbone, head))}, name)
    return Path(name)


def stages(
    vitp: Vitp, recipe: str, data: Path, run: str, limit: int, classifier: str, *generate: str, tasks: str = ""
) -> dict:
    """generate-proposals, classify, evaluate; the figures."""
    where = (f"paper/{recipe}", "--data-root", data, "--out", run)
    vitp("generate-proposals", *where, "--limit", limit, *SMALL, *generate)
    vitp("classify", *where, "--classifier", classifier)
    told = ("--set", f"tasks={tasks}") if tasks else ()
    shown = vitp("evaluate", *where, "--classifier", classifier, *told, "--json", f"{run}.json", "--by-class")
    result = json.loads(Path(f"{run}.json").read_text())
    assert result["images"] == {"measured": limit, "of": limit, "failed": []}
    assert "of every class" in shown
    if result["semantic"]:  # whatever the masks are, names from the ground truth cannot be worse by much
        s = result["semantic"]
        assert 0 <= s["generator"]["mIoU"] < s["upper_bound_mask"]["mIoU"] <= 1
        assert s["fused"]["pixel_accuracy"] < s["upper_bound_mask"]["pixel_accuracy"]
    return result


def first_of_coco(source: Path, folder: Path, split: str, count: int) -> None:
    """The first images of a split with their annotations, in COCO's layout."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    path = f"annotations/panoptic_{split}2017.json"
    content = json.loads((source / path).read_text())
    content["images"] = content["images"][:count]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (folder / path).write_text(json.dumps(content))
    for kind, entries in ((f"{split}2017", "images"), (f"panoptic_{split}2017", "annotations")):
        (folder / kind).mkdir()
        for entry in content[entries]:
            shutil.copy(source / kind / entry["file_name"], folder / kind)


def checked(vitp: Vitp, manifest: str, data: Path, *words: str) -> None:
    """Every image of the sample can be used: else the exit code is 3."""
    assert json.loads(vitp("check-dataset", manifest, "--data-root", data, "--json", *words))


def exported(run: str, kind: str) -> Path:
    (folder,) = Path(run).glob(f"exports/{kind}-*/results")
    return folder


def labels_of(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


def test_ade20k(vitp: Vitp, shared: Path) -> None:
    data, name = shared / "data", "1280x1280_250_16_dinat_l_oneformer_ade20k_160k"
    checked(vitp, "ade20k", data)
    file = publish(f"{name}.pth", 150)
    told = ("--as", "oneformer-d2", "--manifest", "ade20k", "--dilations", "1,2/1/2,1/1")
    vitp("import-checkpoint", file, *told, "--out", f"weights/{name}")
    recipe = "ade20k-oneformer-dinat-l"
    vitp("train-classifier", f"paper/{recipe}", "--data-root", data, "--out", "run", *TINY)
    classifier = "run/classifier/default/model.safetensors"
    stages(vitp, recipe, data, "run", 3, classifier, "--config", f"weights/{name}")
    where = (f"paper/{recipe}", "--data-root", data, "--out", "run", "--classifier", classifier)
    vitp("export-results", *where, "--format", "ade20k")
    dataset = Dataset(load_manifest("ade20k"), data, "val")
    for label, sample in zip(labels_of(exported("run", "ade20k")), dataset.samples, strict=True):
        assert label.shape == dataset.read_semantic(sample).shape and 1 <= label.min() <= label.max() <= 150
    views = ("--set", "scales=[0.5,1.0]", "--set", "flip=true", "--set", "limit=1", "--set", f"config=weights/{name}")
    assert "of every class" in vitp("evaluate", *where, "--stream", *SMALL, *views, "--by-class")


def test_cityscapes_fine_and_coarse(vitp: Vitp, shared: Path) -> None:
    """The sample's own label images; coarse polygons as what a classifier learns from."""
    data = Path("cityscapes").absolute()
    shutil.copytree(shared / "data/cityscapes", data)
    checked(vitp, "cityscapes", data, "--split", "val")
    vitp("prepare", "cityscapes", "--data-root", data, "--only", "panoptic")
    checked(vitp, "cityscapes-panoptic", data, "--split", "val")
    name = "mapillary_pretrain_250_16_convnext_l_oneformer_cityscapes_90k"
    file = publish(f"{name}.pth", 19, backbone="tiny-convnext")
    vitp("import-checkpoint", file, "--as", "oneformer-d2", "--manifest", "cityscapes", "--out", f"weights/{name}")
    recipe, classifier = "cityscapes-oneformer-convnext-l", "run/classifier/{}/model.safetensors"
    for kind in ("fine", "coarse"):
        for folder in ("leftImg8bit/train/aachen", "gtFine/train/aachen"):  # of the others there are no coarse polygons
            for other in (data / folder).glob("*") if kind == "coarse" else ():
                if "aachen_000000_000019" not in other.name:
                    other.unlink()
        told = ("--name", kind, "--set", "split=train", "--set", f'data=["{kind}"]')
        vitp("train-classifier", f"paper/{recipe}", "--data-root", data, "--out", "run", *TINY, *told)
    stages(vitp, recipe, data, "run", 1, classifier.format("fine"), "--config", f"weights/{name}")
    where = (f"paper/{recipe}", "--data-root", data, "--out", "run")
    vitp("classify", *where, "--name", "coarse")
    vitp("evaluate", *where, "--name", "coarse")
    both, panoptic = '["panoptic","instance"]', (f"{recipe}-panoptic", data, "objects", 1, classifier.format("fine"))
    result = stages(vitp, *panoptic, "--config", f"weights/{name}", tasks=both)
    assert (
        "cityscapes" in result["instance"]["fused"] and result["panoptic"]["upper_bound_mask"]["all"]["PQ"] is not None
    )
    where = (f"paper/{recipe}-panoptic", "--data-root", data, "--out", "objects")
    vitp("export-results", *where, "--classifier", classifier.format("fine"), "--format", "cityscapes")
    (label,) = labels_of(exported("objects", "cityscapes") / "semantic")
    ids = {info.label for info in load_manifest("cityscapes").classes}
    assert label.shape == (1024, 2048) and set(np.unique(label)) <= ids


def test_coco_panoptic(vitp: Vitp, shared: Path) -> None:
    data, name = Path("coco").absolute(), "150_16_dinat_l_oneformer_coco_100ep"
    for split, count in (("train", 6), ("val", 3)):
        first_of_coco(shared / "data/coco", data, split, count)
    checked(vitp, "coco-panoptic", data)
    file = publish(f"{name}.pth", 133)
    told = ("--as", "oneformer-d2", "--manifest", "coco-panoptic", "--dilations", "1,2/1/2,1/1")
    vitp("import-checkpoint", file, *told, "--out", f"weights/{name}")
    recipe = "coco-oneformer-dinat-l"
    vitp("train-classifier", f"paper/{recipe}", "--data-root", data, "--out", "run", *TINY)
    classifier = "run/classifier/default/model.safetensors"
    tasks = '["semantic","panoptic","instance"]'
    told = ("--config", f"weights/{name}", "--set", "task=instance")
    result = stages(vitp, recipe, data, "run", 3, classifier, *told, tasks=tasks)
    assert result["instance"]["upper_bound_mask"]["coco"]["classes"] > 0
    where = (f"paper/{recipe}", "--data-root", data, "--out", "run", "--classifier", classifier)
    for kind in ("coco-panoptic", "coco-results"):
        vitp("export-results", *where, "--format", kind, "--set", "object_threshold=0.0")
    written = json.loads((exported("run", "coco-panoptic") / "panoptic.json").read_text())
    assert len(written["annotations"]) == 3 and any(a["segments_info"] for a in written["annotations"])
    instances = json.loads((exported("run", "coco-results") / "results.json").read_text())
    categories = {info.label for info in load_manifest("coco-panoptic").classes if info.thing}
    assert instances and {i["category_id"] for i in instances} <= categories


def test_coco_stuff(vitp: Vitp, shared: Path) -> None:
    """InternImage-H takes 7 GB whatever the image; a tiny Mask2Former of detectron2's layout stands in for it."""
    data = shared / "data/coco_stuff164k"
    checked(vitp, "coco-stuff", data)
    file = publish("tiny.pth", 171, "mask2former", "tiny-swin")
    told = ("--as", "mask2former-d2", "--manifest", "coco-stuff", "--test-size", "96", "192")
    vitp("import-checkpoint", file, *told, "--out", "weights/tiny")
    recipe = "coco-stuff-mask2former-internimage-h"
    vitp("train-classifier", f"paper/{recipe}", "--data-root", data, "--out", "run", *TINY)
    classifier = "run/classifier/default/model.safetensors"
    stages(vitp, recipe, data, "run", 3, classifier, "--config", "weights/tiny", "--set", "checkpoint=")
    where = (f"paper/{recipe}", "--data-root", data, "--out", "run", "--classifier", classifier)
    vitp("export-results", *where, "--format", "label-png")
    values = {info.label for info in load_manifest("coco-stuff").classes}
    labels = labels_of(exported("run", "label-png"))
    assert len(labels) == 3 and all(set(np.unique(label)) <= values for label in labels)
