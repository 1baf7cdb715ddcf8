"""A small run on drawn scenes with the project's own generator: all stages, real models, a few seconds."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline.store_server import endpoint, processes, s3  # noqa: F401
from vitp_pipeline.cli import main as cli
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.execution.sharding import choose_shard

RECIPE = """
manifest = "demo"

[generate-proposals]
config = "{package}/demo/generator_config.py"
checkpoint = "{package}/demo/generator.safetensors"
part_size = 2

[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 2, "num_heads": 2}'
image_size = [96, 128]
point_token = "patch"
points_per_image = 32
epochs = 4
batch_size = 4
optimizer = "adamw"
lr = 1e-3
drop_path = 0.1
crop_scale = [0.5, 1.0]
hold_out = 2
"""
STAGES = ("generate-proposals", "train-classifier", "classify", "evaluate")


@dataclass(frozen=True)
class Project:
    """A dataset, a recipe, and functions that do what the commands do."""

    data: Path
    recipe: Path

    def run(self, stage: str, out: Path, shard: str | None = None, alpha: str = "0,0.4,1", **settings):
        recipe, choice = load_recipe(self.recipe), choose_shard(shard, {})
        if stage == "generate-proposals":
            from vitp_pipeline.stages.generate_proposals import generate_proposals

            retry = settings.pop("retry_failed", False)
            return generate_proposals(recipe, recipe.stage(ProposalSettings, **settings), self.data, out, choice, retry)
        if stage == "train-classifier":
            from vitp_pipeline.stages.train_classifier import train_classifier

            return train_classifier(recipe, recipe.stage(TrainSettings, **settings), self.data, out)
        if stage == "classify":
            from vitp_pipeline.stages.classify import classify

            retry = settings.pop("retry_failed", False)
            return classify(recipe, recipe.stage(ClassifySettings, **settings), self.data, out, choice, retry)
        from vitp_pipeline.config.flags import parse_alphas
        from vitp_pipeline.stages.evaluate import evaluate_shards, prepare

        retry = settings.pop("retry_failed", False)
        measures, points = recipe.stage(EvaluateSettings, **settings), recipe.stage(ClassifySettings)
        evaluation = prepare(recipe, measures, points, parse_alphas(alpha), self.data, out, choice)
        outcome = evaluate_shards(evaluation, measures, points, choice.within(evaluation.run.shards), retry)
        return evaluation, outcome

    def run_all(self, out: Path) -> None:
        for stage in STAGES:
            self.run(stage, out)


def snapshot(run: Path) -> dict[str, bytes]:
    """Every result of a run by its path; not what is for people (provenance, timings) or momentary (locks, digests).

    result.json holds its provenance; its figures are sums over the rows, which are compared.
    """
    apart = ("log/", "lock", "run.json", "copies.json", "result.json", "digests.json", "checkpoint.pt")
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if not any(part in name for part in apart):
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    from vitp_pipeline.demo.scenes import draw_scenes

    folder = tmp_path_factory.mktemp("project")
    draw_scenes(folder / "scenes", "train", 10, seed=0)
    draw_scenes(folder / "scenes", "val", 9, seed=0)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return Project(folder / "scenes", folder / "recipe.toml")


@pytest.fixture(scope="session")
def finished(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages without interruption. Tests that change it use a copy."""
    out = tmp_path_factory.mktemp("finished") / "run"
    project.run_all(out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


Vitp = Callable[..., str]


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vitp:
    """Run a command that is to end with `code`; the fixture's function returns what it prints."""

    def vitp(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        found = 0
        try:
            cli.main()
        except SystemExit as stop:
            found = stop.code or 0
        shown = "".join(capsys.readouterr())
        assert found == code, shown
        return shown

    return vitp
