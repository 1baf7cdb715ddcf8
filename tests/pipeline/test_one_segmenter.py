"""Every key that can change a map changes it alike in evaluate, export-results, predict, the report and the demo.

One way to make maps (`postprocess.segmenter`) has five users. `evaluate` keeps counts, not maps: its figures must be
those of the exported maps. A key that is added to [evaluate] or [classify] and has no entry here fails the last test.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.demo.picture import _panels, colored
from vitp_pipeline.evaluation.count_reader import read_rows
from vitp_pipeline.evaluation.definition import MAP_KEYS
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.inference.predictor import Predictor, load_generator
from vitp_pipeline.metrics.panoptic import PanopticQuality
from vitp_pipeline.metrics.semantic import Confusion
from vitp_pipeline.report.loaded_evaluation import open_evaluation
from vitp_pipeline.report.thumbnails import card_content, shrunk, thumbnail_size
from vitp_pipeline.stages.classify import classify
from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
from vitp_pipeline.stages.export_results import export_shards
from vitp_pipeline.stages.export_results import prepare as prepare_export

BASE = {"object_threshold": 0.2, "tasks": ("semantic", "panoptic", "instance")}
EVALUATE: dict[str, tuple[Any, dict[str, Any]]] = {  # a value that changes a map, and what else that needs
    "alpha": (0.9, {}),
    "formula": ("raw", {}),
    "protocol": ("mmseg0", {}),
    "panoptic_rule": ("mmdet", {}),
    "object_threshold": (0.6, {}),
    "overlap_threshold": (0.97, {}),
    "overlap": ("smallest-on-top", {}),
    "mask_quality": (True, {}),
    "detections": (3, {}),
}
CLASSIFY: dict[str, tuple[Any, dict[str, Any]]] = {
    "points": ("multi", {}),
    "flip": (True, {}),
    "temperature": (0.3, {}),
    "average": ("log-probabilities", {"points": "multi", "temperature": 0.3}),
    "chunk": (7, {}),
    "frame": ("cells", {}),
}
NO_MAP = {
    "evaluate": {"device", "tasks", "instance_ap", "boundary_iou", "boundary_ratio", "components", "certain"},
    "classify": {"name", "classifier", "batch_size", "device", "precision", "feature_cache"},
}
"""Keys that say what is measured, where it is computed, or which classifier is meant (`precision` rounds)."""


@dataclass
class Maps:
    """Per image: (H, W) class indices; ids and segments; detections as [class, score, run lengths]."""

    semantic: dict[str, np.ndarray]
    panoptic: dict[str, tuple[np.ndarray, list[tuple[int, int]]]]
    instances: dict[str, list[tuple[int, float, str]]]

    def differs(self, other: Maps) -> bool:
        return any(
            not np.array_equal(self.semantic[i], other.semantic[i])
            or not np.array_equal(self.panoptic[i][0], other.panoptic[i][0])
            or self.panoptic[i][1] != other.panoptic[i][1]
            or self.instances[i] != other.instances[i]
            for i in self.semantic
        )


@pytest.fixture(scope="module")
def run(project, finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's classifier, and proposals of three images with several points each."""
    out = tmp_path_factory.mktemp("segmenter") / "run"
    shutil.copytree(finished / "classifier", out / "classifier")
    project.run("generate-proposals", out, points=("max", "multi"), limit=3)
    return out


def settings_of(project, evaluate: dict[str, Any], classify: dict[str, Any]):
    recipe = load_recipe(project.recipe)
    return recipe, recipe.stage(EvaluateSettings, **{**BASE, **evaluate}), recipe.stage(ClassifySettings, **classify)


def evaluated(project, run: Path, evaluate: dict[str, Any], points: dict[str, Any]):
    recipe, measures, chosen = settings_of(project, evaluate, points)
    classify(recipe, chosen, project.data, run, ShardChoice())
    evaluation = prepare(recipe, measures, chosen, (), project.data, run, ShardChoice())
    evaluate_shards(evaluation, measures, chosen, range(evaluation.run.shards))
    return evaluation


def exported(project, run: Path, evaluate: dict[str, Any], points: dict[str, Any]) -> Maps:
    recipe, measures, chosen = settings_of(project, evaluate, points)
    folders = {}
    for name in ("label-png", "coco-panoptic", "coco-results"):
        made = prepare_export(recipe, measures, chosen, name, "fused", project.data, run, ShardChoice())
        export_shards(made, range(made.run.shards))
        folders[name] = made.results
    index = {c.label: k for k, c in enumerate(recipe.manifest.classes)}
    listed = json.loads((folders["coco-panoptic"] / "panoptic.json").read_text())["annotations"]
    found = json.loads((folders["coco-results"] / "results.json").read_text())
    maps = Maps({}, {}, {})
    for annotation in listed:
        png = annotation["file_name"]
        image = Path(png).stem
        labels = np.asarray(Image.open(folders["label-png"] / png))
        maps.semantic[image] = np.vectorize(index.get, otypes=[int])(labels)
        rgb = np.asarray(Image.open(folders["coco-panoptic"] / "panoptic" / png)).astype(int)
        segments = [(s["id"], index[s["category_id"]]) for s in annotation["segments_info"]]
        maps.panoptic[image] = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2], segments
        own = [e for e in found if str(e["image_id"]) == str(annotation["image_id"])]
        maps.instances[image] = [
            (index[e["category_id"]], round(e["score"], 4), e["segmentation"]["counts"]) for e in own
        ]
    return maps


def predicted(project, run: Path, evaluate: dict[str, Any], points: dict[str, Any]) -> Maps:
    recipe, measures, chosen = settings_of(project, evaluate, points)
    config, demo = recipe.stage(ProposalSettings), Path("vitp_pipeline/demo")
    generator = load_generator(str(demo / "generator_config.py"), demo / "generator.safetensors")
    classifier = load_classifier(run / "classifier/default/model.safetensors")
    predictor = Predictor(generator, classifier, recipe.manifest, config, chosen, measures)
    dataset, maps = Dataset(recipe.manifest, project.data, "val"), Maps({}, {}, {})
    for sample in dataset.samples[:3]:
        found = predictor.segment(dataset.read_image(sample), BASE["tasks"], sample.image_id)
        image = sample.image.stem
        maps.semantic[image] = found.labels
        maps.panoptic[image] = found.ids, [(s.id, s.category) for s in found.segments]
        maps.instances[image] = [(i.category, round(i.score, 4), i.mask["counts"].decode()) for i in found.instances]
    return maps


def assert_measured(project, evaluation, maps: Maps) -> None:
    """The figures of `evaluate` are those of the maps."""
    dataset, things = evaluation.dataset, evaluation.dataset.spec.things
    confusion, quality = Confusion(len(things)), PanopticQuality(len(things), things)
    from vitp_pipeline.postprocess.panoptic import Segment

    for sample in dataset.samples[:3]:
        image = sample.image.stem
        confusion.update(maps.semantic[image], dataset.read_semantic(sample))
        ids, segments = maps.panoptic[image]
        quality.update(ids, [Segment(i, k, 1.0) for i, k in segments], *dataset.read_panoptic(sample))
    result = result_of(evaluation)
    assert result.get("overlap", "sum") == evaluation.settings.overlap
    assert result["semantic"]["fused"]["mIoU"] == pytest.approx(confusion.miou(), abs=1e-12)
    assert result["panoptic"]["fused"]["all"]["PQ"] == pytest.approx(quality.summary()["all"].pq, abs=1e-12)
    number = evaluation.variants.index(evaluation.headline)
    rows = read_rows(evaluation, ("instances",), [number])
    entries = rows.columns["instances"]
    for place, image_id in enumerate(rows.images):
        own = (entries["image"] == place) & (entries["measure"] == 0)
        kept = zip(entries["class"][own].tolist(), entries["score"][own].tolist(), strict=True)
        image = dataset.sample(image_id).image.stem
        assert sorted((k, round(s, 4)) for k, s in kept) == sorted((k, s) for k, s, _ in maps.instances[image])


def assert_shown(project, run: Path, evaluation, maps: Maps) -> None:
    """The report's and the demo's pictures are of the maps."""
    dataset, stored = evaluation.dataset, open_evaluation(evaluation.run.folder, project.data, str(project.recipe))
    with evaluation.class_scores.open_arrays(0, 0) as scores:
        for record in evaluation.proposals.read_part(0, 0):
            image = Path(record.file_name).stem
            card = card_content(stored, record.image_id)
            size = thumbnail_size(record.view.original)
            planes = np.frombuffer(zlib.decompress(base64.b64decode(card["maps"])), "<u2").reshape(-1, *size)
            assert np.array_equal(planes[2], shrunk(maps.semantic[image], size))
            _, pictures, _ = _panels(evaluation, record, scores.read(f"point_logits/{record.key}"))
            photo = dataset.read_image(dataset.sample(record.image_id))
            assert np.array_equal(pictures[3], colored(photo, maps.semantic[image], dataset.spec))


def assert_alike(one: Maps, other: Maps) -> None:
    assert one.semantic.keys() == other.semantic.keys() and len(one.semantic) == 3
    assert not one.differs(other)


@pytest.fixture(scope="module")
def plain(project, run: Path) -> Maps:
    evaluated(project, run, {}, {})
    return exported(project, run, {}, {})


CASES = [("evaluate", key) for key in EVALUATE] + [("classify", key) for key in CLASSIFY]


@pytest.mark.parametrize(("table", "key"), CASES, ids=[".".join(case) for case in CASES])
def test_a_key_changes_maps_alike_in_all_that_make_them(project, run: Path, plain: Maps, table: str, key: str) -> None:
    value, needs = (EVALUATE if table == "evaluate" else CLASSIFY)[key]
    changed = {"evaluate": {}, "classify": {}, table: {**needs, key: value}}
    evaluation = evaluated(project, run, changed["evaluate"], changed["classify"])
    maps = exported(project, run, changed["evaluate"], changed["classify"])
    before = plain
    if needs:
        evaluated(project, run, {}, needs)
        before = exported(project, run, {}, needs)
    assert maps.differs(before), "the value changes nothing: choose another one"
    assert_alike(maps, predicted(project, run, changed["evaluate"], changed["classify"]))
    assert_measured(project, evaluation, maps)
    assert_shown(project, run, evaluation, maps)


def test_every_key_has_an_entry() -> None:
    assert set(EVALUATE) == MAP_KEYS
    for kind, entries, name in ((EvaluateSettings, EVALUATE, "evaluate"), (ClassifySettings, CLASSIFY, "classify")):
        assert {f.name for f in dataclasses.fields(kind)} == set(entries) | NO_MAP[name]
        assert not set(entries) & NO_MAP[name]
