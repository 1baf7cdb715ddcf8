"""A folder in which the commands of the pages work: a small dataset and a small finished run under all their names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

RECIPE = """
manifest = "mine.toml"

[generate-proposals]
config = "{package}/demo/generator_config.py"
checkpoint = "{package}/demo/generator.safetensors"
points = ["max", "multi"]
multi = 2

[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 1, "num_heads": 2}'
image_size = [48, 64]
points_per_image = 8
epochs = 1
flip = false
"""
PLACES = ("demo/run", "mine", "photos", "camvid", "camvid-large", "coco", "streamed")
RUNS = ("RUN", "RUN_A", "RUN_B", *(f"runs/{name}" for name in PLACES))


class Place:
    """The folder. `lay` puts the files there that a command may have replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lay(self) -> None:
        manifest = (ROOT / "manifests/demo.toml").read_text(encoding="utf-8")
        (self.folder / "mine.toml").write_text(manifest, encoding="utf-8")
        (self.folder / "run-mine.toml").write_text(RECIPE, encoding="utf-8")
        profile = (ROOT / "stages/cluster/example.toml").read_text(encoding="utf-8")
        (self.folder / "cluster.toml").write_text(f'image = "vitp.sif"\n{profile}', encoding="utf-8")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With the files, not yet with a run."""
    place = Place(tmp_path_factory.mktemp("place"))
    for name in ("manifests", "stages", "tools"):
        (place.folder / name).symlink_to(ROOT / name)
    place.lay()
    return place


@pytest.fixture(scope="session")
def finished(place: Place) -> Place:
    """With the data set, photographs, and runs in which all four stages are done."""
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
    from vitp_pipeline.demo.scenes import draw_scenes
    from vitp_pipeline.evaluation.summary import result_of
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.stages.classify import classify
    from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
    from vitp_pipeline.stages.generate_proposals import generate_proposals
    from vitp_pipeline.stages.train_classifier import train_classifier

    data, run, everything = place.folder / "data", place.folder / "RUN", ShardChoice()
    draw_scenes(data, "train", 3, seed=0)
    draw_scenes(data, "val", 2, seed=0)
    shutil.copytree(data / "images/val", place.folder / "photos")
    here = Path.cwd()
    os.chdir(place.folder)
    try:
        recipe = load_recipe("run-mine.toml")
        points, measures = recipe.stage(ClassifySettings), recipe.stage(EvaluateSettings)
        generate_proposals(recipe, recipe.stage(ProposalSettings), data, run, everything)
        train_classifier(recipe, recipe.stage(TrainSettings), data, run)
        classify(recipe, points, data, run, everything)
        evaluation = prepare(recipe, measures, points, (), data, run, everything)
        evaluate_shards(evaluation, measures, points, range(1))
        result_of(evaluation)
    finally:
        os.chdir(here)
    for name in RUNS[1:]:
        shutil.copytree(run, place.folder / name)
    return place
