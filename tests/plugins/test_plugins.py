"""A member of every family from another package, used from end to end; and what is said without it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from tests.datasets.making import write_png
from tests.stages.making import RECIPE, Project, drawn, make_project, make_run
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.classifier.inference import average_of
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.diagnostics.check_dataset import check_dataset
from vitp_pipeline.diagnostics.model_cost import costs_of
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.evaluation.count_reader import read_rows
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.stages import export_results
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.stages.import_proposals import import_proposals


def test_fusion_formula(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project, out = make_project(tmp_path, count=3), tmp_path / "run"
    make_run(project, out)
    with pytest.raises(UsageError, match=r'formula = "arithmetic". Choose one of: raw, renormalized'):
        project.evaluate(out, formula="arithmetic", alpha=0.6)
    request.getfixturevalue("plugin")
    rows = read_rows(project.evaluate(out, formula="arithmetic", alpha=0.6), ["masks"])
    for number, image_id in enumerate(rows.images):
        record, scores = drawn(project.dataset, image_id)
        mixed = 0.4 * softmax(record.class_logits[:, :-1], 1) + 0.6 * softmax(scores, 1)
        masks = rows.columns["masks"]
        query, fused = (masks[name][masks["image"] == number] for name in ("query", "fused"))
        assert len(query) and np.array_equal(fused, mixed.argmax(1)[query])


def test_result_format(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project, out = make_project(tmp_path, count=3), tmp_path / "run"
    make_run(project, out)
    settings, classify = project.recipe.stage(EvaluateSettings), project.recipe.stage(ClassifySettings)
    where = project.root, out, ShardChoice()

    def prepare(format: str) -> export_results.Export:
        return export_results.prepare(project.recipe, settings, classify, format, "fused", *where)

    with pytest.raises(UsageError, match=r"no result format 'counts'\. "):
        prepare("counts")
    request.getfixturevalue("plugin")
    export, pictures = prepare("counts"), prepare("label-png")
    for each in (export, pictures):
        assert not export_results.export_shards(each, [0]).failed
    found = json.loads((export.results / "all.json").read_text())
    assert len(found) == 3
    for name, counts in found.items():
        labels = np.asarray(Image.open(pictures.results / Path(name).with_suffix(".png").name))
        assert counts == [int((labels == info.label).sum()) for info in project.recipe.manifest.classes]
        assert (export.results / Path(name).with_suffix(".txt").name).read_text() == "\n".join(map(str, counts))


def test_mask_importer(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project, out = make_project(tmp_path, count=3), tmp_path / "run"
    settings = project.recipe.stage(ProposalSettings, masks="lossless")
    rectangles = {image_id: [[n, 2, n + 5, 9, n % 3, 0.9]] for n, image_id in enumerate(project.dataset.image_ids)}
    (tmp_path / "masks.json").write_text(json.dumps(rectangles))

    def imported() -> int:
        where = tmp_path / "masks.json", project.root, out, ShardChoice()
        return len(import_proposals(project.recipe, settings, "rectangles", *where).failed)

    with pytest.raises(
        UsageError, match=r"no format of masks 'rectangles'. Known are: coco, ground-truth, mmdet, npz, sam"
    ):
        imported()
    request.getfixturevalue("plugin")
    assert imported() == 0
    for record in open_proposals(out):
        ((top, left, bottom, right, label, _),) = rectangles[record.image_id]
        expected = np.zeros(record.view.original, bool)
        expected[top:bottom, left:right] = True
        assert np.array_equal(record.masks[0] > 0, expected)
        assert record.class_logits[0].argmax() == label


GENERATOR = """
import torch
from vitp_pipeline.generators.base import Output

class Blank:
    classes, protocol, describe = ("sky", "road", "car"), "d2", "two masks that are everywhere"

    def __init__(self, checkpoint, device, seed): ...

    def resize(self, image, scale=1.0):
        return image

    def forward(self, frames):
        return [Output(torch.ones(2, 5, 7), torch.zeros(2, 4), frame.shape[:2]) for frame in frames]
"""


def test_point_policy(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project, out = make_project(tmp_path, count=3), tmp_path / "run"
    (tmp_path / "blank.py").write_text(GENERATOR)
    asked = {"config": "python:blank.py:Blank", "points": ("max", "corners")}
    with pytest.raises(UsageError, match=r'points = \["max", "corners"\].* Choose among: center, local_maxima, max, '):
        project.recipe.stage(ProposalSettings, **asked)
    request.getfixturevalue("plugin")
    settings = project.recipe.stage(ProposalSettings, **asked)
    assert not generate_proposals(project.recipe, settings, project.root, out, ShardChoice()).failed
    for record in open_proposals(out):
        last = [side - 1 for side in record.view.original]
        assert record.points["corners"].tolist() == [[0, 0], last] * 2
        assert record.points["max"].shape == (2, 2)
    assert average_of("corners") == "log-probabilities"
    demo = load_recipe("demo").path.read_text().replace("[classify]", '[classify]\npoints = "corners"')
    (tmp_path / "demo.toml").write_text(demo)
    generator, classifier = costs_of(str(tmp_path / "demo.toml"), crop="64x96")
    assert classifier.n == 2 * generator.n


MANIFEST = """
name = "toy"
labels = { kind = "KIND" }
classes = [
    { name = "sky", label = 1, thing = false },
    { name = "road", label = 2, thing = false },
    { name = "car", label = 3, thing = true },
]
[splits.val]
images = "images/*.png"
labels = "labels/{stem}.ENDING"
"""


def test_label_kind(tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """The same labels as arrays and as images give the same report, and the same figures."""
    rng = np.random.default_rng(5)
    (tmp_path / "data/labels").mkdir(parents=True)
    for number in range(3):
        labels = rng.integers(0, 3, (24, 32)).repeat(2, 0).repeat(2, 1)
        write_png(tmp_path / f"data/images/{number}.png", rng.integers(0, 256, (*labels.shape, 3)).astype(np.uint8))
        write_png(tmp_path / f"data/labels/{number}.png", (labels + 1).astype(np.uint8))
        np.save(tmp_path / f"data/labels/{number}.npy", labels)
    for kind, ending in (("npy", "npy"), ("semantic-png", "png")):
        (tmp_path / f"{ending}.toml").write_text(MANIFEST.replace("KIND", kind).replace("ENDING", ending))
        (tmp_path / f"recipe-{ending}.toml").write_text(RECIPE.replace("toy.toml", f"{ending}.toml"))
    with pytest.raises(
        InputError,
        match=r'kind = "npy".* Choose one of: coco-instances, coco-panoptic, color-png, label-studio, semantic-png',
    ):
        load_recipe(tmp_path / "recipe-npy.toml")
    request.getfixturevalue("plugin")
    found = []
    for ending in ("npy", "png"):
        check_dataset(str(tmp_path / f"{ending}.toml"), tmp_path / "data", as_json=True)
        (report,) = json.loads(capsys.readouterr().out)["splits"]
        project = Project(tmp_path / "data", load_recipe(tmp_path / f"recipe-{ending}.toml"))
        make_run(project, tmp_path / ending)
        evaluation = project.evaluate(tmp_path / ending, tasks=("semantic",), instance_ap=("coco",))
        found.append((report["classes"], report["broken"], result_of(evaluation)["semantic"]))
    assert found[0] == found[1] and not found[0][1] and found[0][2]["fused"]["mIoU"] > 0
    np.save(tmp_path / "data/labels/1.npy", labels[1:])
    with pytest.raises(InputError, match="1 of 3 images cannot be used"):
        check_dataset(str(tmp_path / "npy.toml"), tmp_path / "data")
