"""Binary masks that are stored plane by plane: all that reads them finds the same as from dense masks."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.conftest import Project
from vitp_pipeline.artifacts import array_metadata, parts, proposals
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import CorruptError, InputError
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.report.loaded_evaluation import open_evaluation
from vitp_pipeline.report.mask_statistics import read_masks
from vitp_pipeline.report.thumbnails import card_content
from vitp_pipeline.stages import export_results
from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
from vitp_pipeline.stages.import_proposals import import_proposals

FORMATS = ("label-png", "coco-panoptic", "coco-results")
CODECS = {"lossless": {"masks": "lossless"}, "bounded": {}}


@pytest.fixture(scope="module", params=CODECS)
def imported(
    request: pytest.FixtureRequest, project: Project, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A classified run of nested masks, of odd outlines, some empty, some whole, stored plane by plane."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe, rng = load_recipe(project.recipe), np.random.default_rng(0)
    dataset = Dataset(recipe.manifest, project.data, "val")
    (folder / "masks").mkdir()
    for sample in dataset.samples:
        ids, segments = dataset.read_panoptic(sample)
        masks = [ids == segment.id for segment in segments]
        categories = [segment.category for segment in segments]
        rows, columns = np.indices(ids.shape)
        for _ in range(6):
            far = np.hypot(rows - rng.uniform(0, ids.shape[0]), columns - rng.uniform(0, ids.shape[1]))
            masks += [far < radius for radius in rng.uniform(2, 60, 2)]
            categories += rng.integers(0, len(recipe.manifest.classes), 2).tolist()
        masks += [np.zeros(ids.shape, bool), np.ones(ids.shape, bool), masks[-1]]
        categories += [0, 1, categories[-1]]
        labels = np.array(categories)
        scores = rng.choice([0.4, 0.7, 0.9], len(masks))  # with ties
        np.savez(folder / f"masks/{sample.image_id}.npz", masks=np.stack(masks), labels=labels, scores=scores)
    settings = recipe.stage(ProposalSettings, config="(imported)", **CODECS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "HELD", 1)
        import_proposals(recipe, settings, "npz", folder / "masks", project.data, folder / "run", ShardChoice())
    project.run("classify", folder / "run", classifier=str(finished / "classifier/default/model.safetensors"))
    return folder / "run"


def everything(project: Project, finished: Path, out: Path) -> dict[str, object]:
    """What evaluate, export-results and the report make of a run."""
    recipe, every = load_recipe(project.recipe), ShardChoice()
    tasks = ["semantic", "panoptic", "instance"]
    measures = recipe.stage(EvaluateSettings, object_threshold=0.3, tasks=tasks, certain=True, boundary_iou=True)
    points = recipe.stage(ClassifySettings, classifier=str(finished / "classifier/default/model.safetensors"))
    evaluation = prepare(recipe, measures, points, (), project.data, out, every)
    assert not evaluate_shards(evaluation, measures, points, range(evaluation.run.shards)).failed
    result = {name: value for name, value in result_of(evaluation).items() if name != "provenance"}
    found: dict[str, object] = {"result": result}
    for format in FORMATS:
        export = export_results.prepare(recipe, measures, points, format, "fused", project.data, out, every)
        export_results.export_shards(export, range(export.run.shards))
        files = sorted(path for path in export.results.rglob("*") if path.is_file())
        assert files
        for path in files:
            found[f"{format}/{path.relative_to(export.results)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    stored = open_evaluation(evaluation.run.folder, project.data, str(project.recipe))
    facts = read_masks(stored)
    found["facts"] = [values.tolist() for values in (facts.area, facts.label, *facts.confidence.values())]
    found["cards"] = [card_content(stored, image) for image in stored.rows.images[:3]]
    return found


@pytest.mark.slow
def test_all_results_are_those_of_dense_masks(
    project: Project, finished: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grouped", "dense"):
        shutil.copytree(imported, tmp_path / name)
    grouped = everything(project, finished, tmp_path / "grouped")
    monkeypatch.setattr(proposals, "_groups", lambda entry, arrays: None)
    dense = everything(project, finished, tmp_path / "dense")
    assert grouped.keys() == dense.keys() and len(grouped) > 12
    for name, values in grouped.items():
        assert values == dense[name], name


def test_groups_hold_the_masks(imported: Path) -> None:
    store = open_proposals(imported)
    for record in store:
        assert record.groups is None and record.masks.shape[1:] == record.view.original
        own = store.read(record.image_id, grouped=True)
        assert own.groups is not None and own.masks.shape[1] == 1
        assert np.array_equal(np.stack(list(own.each_mask())), record.masks)
        places = np.array([3, 1])
        assert np.array_equal(np.stack(list(own.each_mask(places))), record.masks[places])
        assert np.array_equal(np.stack(list(record.each_mask(places))), record.masks[places])


def test_too_many_masks_are_no_damage(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_proposals(imported)
    image = store.run.images[0]
    height, width = store.read(image).view.original
    monkeypatch.setattr(array_metadata, "LARGEST", 4 * height * width)
    with pytest.raises(InputError, match=r"masks of \d+×\d+ are .* GB as floats") as raised:
        store.read(image)
    assert raised.value.hint == "Import fewer masks, or masks of a smaller image"
    assert store.read(image, grouped=True).groups is not None
    monkeypatch.setattr(array_metadata, "LARGEST", height * width)
    with pytest.raises(CorruptError, match="the shape"):
        store.read(image, grouped=True)


def test_a_generators_masks_have_no_groups(finished: Path) -> None:
    store = open_proposals(finished)
    assert all(record.groups is None for record in store.read_part(0, 0, grouped=True))
