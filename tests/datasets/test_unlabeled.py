"""Splits without ground truth, like COCO's test sets: they have images; every reader of labels says why it cannot."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.classifier.making import tiny_model
from tests.datasets import making
from vitp_pipeline.classifier.weights import save_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import Dataset, DatasetSpec, load_manifest
from vitp_pipeline.datasets.samples import unlabeled
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.diagnostics.check_files import as_dict, check_split
from vitp_pipeline.diagnostics.contact_sheet import draw_sheet
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.execution.sharding import ShardChoice

NO_LABELS = "its manifest names no `labels`"
FILE = "annotations/image_info_test-dev2017.json"
FULL = "annotations/panoptic_val.json"


PLAIN, PANOPTIC = SplitSpec("val", annotations=FILE), SplitSpec("val", "panoptic_val", FULL)


@dataclass(frozen=True)
class Case:
    """A split: what its annotation file has besides images and categories, and its keys in the manifest.

    Attributes:
        reason: a part of why there is no ground truth.
        some: whether other parts of the split have labels.
    """

    reason: str = "image_info_test-dev2017.json has no `annotations`"
    kind: str = "coco-panoptic"
    more: dict[str, Any] | None = None
    split: SplitSpec = PLAIN
    others: dict[str, SplitSpec] | None = None
    zipped: bool = False
    some: bool = False


CASES = {
    "panoptic": Case(),
    "panoptic, null": Case(more={"annotations": None}),
    "panoptic, as the public file": Case(more={"info": {"year": 2017}, "licenses": [{"id": 1}]}),
    "panoptic, a folder of labels named": Case(split=SplitSpec("val", "panoptic_test", FILE)),
    "panoptic, no labels in the manifest": Case(NO_LABELS, split=SplitSpec("val", annotations=FULL)),
    "instances": Case(kind="coco-instances"),
    "instances, null": Case(kind="coco-instances", more={"annotations": None}),
    "instances, a list of images": Case(
        kind="coco-instances", split=SplitSpec("val", annotations=FILE, list="images.txt")
    ),
    "in an archive": Case(zipped=True, split=SplitSpec("val", annotations=f"test.zip/{FILE}")),
    "label PNGs": Case(NO_LABELS, "semantic-png", split=SplitSpec("val/*.png")),
    "label PNGs, with words": Case(NO_LABELS, "semantic-png", split=SplitSpec("val/{id}.png")),
    "label PNGs, a list of images": Case(NO_LABELS, "semantic-png", split=SplitSpec("val/*.png", list="images.txt")),
    "two parts": Case(
        "more.json has no `annotations`",
        others={"val": PANOPTIC},
        split=SplitSpec("val", annotations="annotations/more.json"),
        some=True,
    ),
}


def write(root: Path, case: Case) -> DatasetSpec:
    spec, data = making.write_coco(root, 3)
    info = {"images": data["images"], "categories": data["categories"], **(case.more or {})}
    (root / FILE).write_text(json.dumps(info))
    other = [{**image, "id": 9000 + image["id"]} for image in data["images"]]
    (root / "annotations/more.json").write_text(json.dumps({**info, "images": other}))
    key = "file_name" if case.kind == "semantic-png" else "id"
    (root / "images.txt").write_text("".join(f"{image[key]}\n" for image in data["images"]))
    if case.zipped:
        with zipfile.ZipFile(root / "test.zip", "w") as archive:
            archive.write(root / FILE, FILE)
    if case.some:
        splits = {**(case.others or {}), "own": case.split, "test": SplitSpec((), of=("val", "own"))}
    else:
        splits = {"test": case.split}
    return replace(spec, kind=case.kind, splits=splits)


@pytest.mark.parametrize("name", CASES)
def test_it_has_images_and_says_why_it_has_nothing_else(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    dataset = Dataset(write(tmp_path, case), tmp_path, "test")
    assert unlabeled(dataset.spec, tmp_path, "test") == dataset.samples.unlabeled
    assert len(dataset) == (6 if case.some else 3)
    sample = dataset.samples[-1]
    image = dataset.read_image(sample)
    assert image.shape[:2] == dataset.image_size(sample)
    with pytest.raises(UsageError) as caught:
        dataset.require_truth("evaluate")
    assert case.reason in str(caught.value) and "split 'test'" in str(caught.value) and "\n" not in str(caught.value)
    readers = [dataset.read_semantic, dataset.read_instances, dataset.read_regions]
    readers += [dataset.read_panoptic] if case.kind == "coco-panoptic" else []
    for read in readers:
        with pytest.raises(InputError, match="no ground truth"):
            read(sample)
    with pytest.raises(InputError, match="no ground truth"):
        dataset.read_boxes(sample, image.shape[:2])
    with pytest.raises(InputError, match="no ground truth"):
        _ = sample.label


@pytest.mark.parametrize("name", CASES)
def test_a_check_looks_at_the_images(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    dataset = Dataset(write(tmp_path, case), tmp_path, "test")
    report = as_dict(check_split(dataset), dataset)
    assert not report["ground_truth"] and not report["broken"] and not report["unlabeled"]
    assert sum(report["image_modes"].values()) == report["checked"] == len(dataset)
    assert (sum(report["label_modes"].values()) == 3) == case.some
    assert draw_sheet(dataset, list(dataset.samples)[:2], "sheet").startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["coco-panoptic", "coco-instances"])
def test_an_empty_list_of_annotations_is_ground_truth(tmp_path: Path, kind: str) -> None:
    """Nobody found an object there; that is not the same as nobody having looked."""
    split = SplitSpec("val", "panoptic_val", FILE)
    dataset = Dataset(write(tmp_path, Case(kind=kind, more={"annotations": []}, split=split)), tmp_path, "test")
    assert not dataset.samples.unlabeled
    if kind == "coco-instances":
        assert dataset.has_masks and dataset.read_instances(dataset.samples[0]) == []
    else:
        with pytest.raises(InputError, match="has no annotation"):
            dataset.read_panoptic(dataset.samples[0])


@pytest.mark.parametrize(
    ("manifest", "split", "file"),
    [
        ("coco-panoptic", "test-dev", "annotations/image_info_test-dev2017.json"),
        ("coco-panoptic", "test", "annotations/image_info_test2017.json"),
        ("coco-instances", "test-dev", "annotations/image_info_test-dev2017.json"),
        ("coco-instances", "test", "annotations/image_info_test2017.json"),
        ("coco-instances", "unlabeled", "annotations/image_info_unlabeled2017.json"),
        ("coco-panoptic", "unlabeled", "annotations/image_info_unlabeled2017.json"),
    ],
)
def test_manifests_name_the_public_files(tmp_path: Path, manifest: str, split: str, file: str) -> None:
    """The public files list the 80 things, whatever the manifest's classes are; test2017 holds the images of both."""
    spec = load_manifest(manifest)
    things = [{"id": c.label, "name": c.name, "supercategory": "x"} for c in spec.classes if c.thing]
    names = ["000000000001.jpg", "000000000057.jpg"]
    images = [
        {"license": 1, "file_name": n, "height": 6, "width": 8, "id": int(n[:12]), "coco_url": f"http://c/{n}"}
        for n in names
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / file).write_text(json.dumps({"info": {}, "images": images, "licenses": [], "categories": things}))
    for n in names:
        making.write_png(
            tmp_path / ("unlabeled2017" if split == "unlabeled" else "test2017") / n, np.zeros((6, 8, 3), np.uint8)
        )
    dataset = Dataset(spec, tmp_path, split)
    assert dataset.image_ids == ("1", "57") and dataset.samples.unlabeled
    assert all(dataset.read_image(sample).shape == (6, 8, 3) for sample in dataset.samples)


def test_other_manifests_name_test_images() -> None:
    for manifest in ("ade20k", "coco-stuff", "cityscapes"):
        assert "test" in load_manifest(manifest).splits


# ---- through the stages ---------------------------------------------------------------------------------------------

GENERATOR = """
import torch
from vitp_pipeline.generators.base import Output

class Halves:
    classes, protocol, describe = ("sky", "road", "car"), "d2", "halves"

    def __init__(self, checkpoint=None, device=None, seed=0):
        pass

    def resize(self, image, scale=1.0):
        return image

    def forward(self, frames):
        found = []
        for frame in frames:
            masks = torch.full((3, *frame.shape[:2]), -6.0)
            for query, columns in enumerate((slice(0, 12), slice(12, 24), slice(24, None))):
                masks[query, :, columns] = 6.0
            logits = torch.zeros(3, 4)
            logits[range(3), range(3)] = 5.0
            found.append(Output(masks, logits, frame.shape[:2]))
        return found
"""
MANIFEST = making.COCO_MANIFEST.replace('labels = "panoptic_val"\n', "").replace(FULL, FILE)


@pytest.mark.parametrize("kind", ["coco-panoptic", "coco-instances"])
def test_it_is_proposed_for_classified_and_handed_in(tmp_path: Path, kind: str) -> None:
    from vitp_pipeline.cluster.plan import Request, plan_chain
    from vitp_pipeline.stages import classify, evaluate, export_results, generate_proposals, stream, train_classifier

    write(tmp_path / "data", Case())
    (tmp_path / "toy.toml").write_text(MANIFEST.replace("coco-panoptic", kind))
    (tmp_path / "halves.py").write_text(GENERATOR)
    (tmp_path / "r.toml").write_text(
        'manifest = "toy.toml"\n[generate-proposals]\nconfig = "python:halves.py:Halves"\n'
    )
    save_classifier(tiny_model(), tmp_path / "model.safetensors", {})
    recipe, out, everything = load_recipe(tmp_path / "r.toml"), tmp_path / "run", ShardChoice()
    root, settings = tmp_path / "data", recipe.stage(ClassifySettings, classifier=str(tmp_path / "model.safetensors"))
    measures, generate = recipe.stage(EvaluateSettings, object_threshold=0.1), recipe.stage(ProposalSettings)
    request = Request(str(tmp_path / "r.toml"), root, out, 1, classifier=str(tmp_path / "model.safetensors"))

    def planned() -> list[str]:
        return [job.stage for job in plan_chain(request, begin=True).jobs]

    assert planned() == ["generate-proposals", "classify"]  # and nothing that measures
    assert not generate_proposals.generate_proposals(recipe, generate, root, out, everything).failed
    assert not classify.classify(recipe, settings, root, out, everything).failed
    assert planned() == []
    for format in ("coco-results", "coco-panoptic"):
        export = export_results.prepare(recipe, measures, settings, format, "fused", root, out, everything)
        assert not export_results.export_shards(export, [0]).failed
        listed = {image["id"] for image in json.loads((root / FILE).read_text())["images"]}
        if format == "coco-results":
            results = json.loads((export.results / "results.json").read_text())
            assert {entry["image_id"] for entry in results} == listed
            assert {entry["category_id"] for entry in results} <= {making.CATEGORIES[2]}
        else:
            results = json.loads((export.results / "panoptic.json").read_text())
            assert {entry["image_id"] for entry in results["annotations"]} == listed
            assert all((export.results / "panoptic" / e["file_name"]).is_file() for e in results["annotations"])
    folders = sorted(path.name for path in out.iterdir())
    for begin in (
        lambda: evaluate.prepare(recipe, measures, settings, (), root, out, everything),
        lambda: stream.Stream(recipe, generate, settings, measures, (), root, out, everything),
        lambda: train_classifier.train(recipe, recipe.stage(TrainSettings, split="val"), root, out),
    ):
        with pytest.raises(UsageError, match=r"split 'val' of 'toy' has no ground truth: .*has no `annotations`"):
            begin()
    assert sorted(path.name for path in out.iterdir()) == folders  # nothing was begun
