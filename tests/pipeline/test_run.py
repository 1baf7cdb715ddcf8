"""`vitp run`: the bytes of the four commands, also after a kill; less where there is no classifier or no label."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import RECIPE, Project, Vitp, snapshot
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.errors import UsageError
from vitp_pipeline.generators.registry import TO_FILL_IN
from vitp_pipeline.stages.pipeline import Pipeline
from vitp_pipeline.stages.pipeline_settings import divided, pipeline_settings

ALPHAS = ("--alpha", "0,0.4,1")  # those of the fixture `finished`


def words_of(recipe: Path, project: Project, out: Path) -> list[str]:
    return ["run", str(recipe), "--data-root", str(project.data), "--out", str(out)]


@pytest.fixture(scope="module")
def without_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tmp_path_factory.mktemp("recipes") / "recipe.toml"
    recipe.write_text(RECIPE.partition("[train-classifier]")[0])
    return recipe


def test_bytes_of_the_four_stages_and_a_report(project: Project, finished: Path, vitp: Vitp, tmp_path: Path) -> None:
    shown = vitp(*words_of(project.recipe, project, tmp_path / "run"), *ALPHAS, "--report")
    assert snapshot(tmp_path / "run").keys() - snapshot(finished).keys() == {"report.html"}
    assert {k: v for k, v in snapshot(tmp_path / "run").items() if k != "report.html"} == snapshot(finished)
    assert [f"stage {i} of 4" in shown for i in range(1, 5)] == [True] * 4
    assert "fused (α = 0.4)" in shown and f"report: {tmp_path / 'run' / 'report.html'}" in shown
    again = vitp(*words_of(project.recipe, project, tmp_path / "run"), *ALPHAS)
    assert again.count("nothing to do") == 4 and "next: vitp report" in again


@pytest.mark.slow
@pytest.mark.kill
def test_killed_in_the_middle_and_run_again(project: Project, finished: Path, vitp: Vitp, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = words_of(project.recipe, project, out)
    command = [sys.executable, "-m", "vitp_pipeline.cli.main", *words, *ALPHAS]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)
    while started.poll() is None and not list(out.glob("proposals/shards/*/part-0001.parquet")):
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (out / "evaluation").exists()
    vitp(*words, *ALPHAS)
    assert snapshot(out) == snapshot(finished)


def test_a_classifier_from_outside_is_not_trained(
    project: Project, finished: Path, without_training: Path, vitp: Vitp, tmp_path: Path
) -> None:
    classifier = finished / "classifier/default/model.safetensors"
    shown = vitp(*words_of(without_training, project, tmp_path / "run"), *ALPHAS, "--classifier", classifier)
    assert "stage 3 of 3: evaluate" in shown and not (tmp_path / "run/classifier").exists()
    wanted = {k: v for k, v in snapshot(finished).items() if not k.startswith("classifier/")}
    assert snapshot(tmp_path / "run") == wanted


def test_without_any_classifier_the_generators_figures(
    project: Project, copied: Path, without_training: Path, vitp: Vitp, tmp_path: Path
) -> None:
    shown = vitp(*words_of(without_training, project, tmp_path / "run"), "--json")
    alone = json.loads(shown[shown.index("{\n") : shown.rindex("}") + 1])["figures"]["semantic"]
    file = tmp_path / "fused.json"
    vitp("evaluate", *words_of(project.recipe, project, copied)[1:], "--json", file)
    fused = json.loads(file.read_text())["semantic"]
    for name in ("generator", "upper_bound_point", "upper_bound_mask"):
        assert alone[name] == fused[name]
    assert "fused" not in alone


def test_until_and_settings_of_several_tables(project: Project, vitp: Vitp, tmp_path: Path) -> None:
    words = words_of(project.recipe, project, tmp_path / "run")
    shown = vitp(*words, "--until", "generate-proposals", "--set", "generate-proposals.limit=2")
    assert "stage 1 of 1" in shown and {p.name for p in (tmp_path / "run").iterdir()} <= {"proposals", "digests.json"}
    assert "Did you mean 'classify'?" in vitp(*words, "--until", "clasify", code=2)
    assert "[train-classifier] and [classify] have this key" in vitp(*words, "--set", "batch_size=2", code=2)
    assert "no stage has such a key. Did you mean 'limit'?" in vitp(*words, "--set", "limmit=2", code=2)
    assert divided({"device": "cpu", "lr": 0.1, "classify.batch_size": 3}) == {
        **{table: {"device": "cpu"} for table in ("generate-proposals", "evaluate")},
        "train-classifier": {"device": "cpu", "lr": 0.1},
        "classify": {"device": "cpu", "batch_size": 3},
    }


def test_images_without_ground_truth_are_exported(
    project: Project, copied: Path, without_training: Path, vitp: Vitp, tmp_path: Path
) -> None:
    manifest = (Path(__file__).parents[2] / "manifests/demo.toml").read_text()
    head = manifest.partition("[labels]")[0]
    files = '[labels]\nkind = "semantic-png"\n[splits.val]\nimages = "images/val/*.*"\n'
    (tmp_path / "photos.toml").write_text(head + files)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(without_training.read_text().replace('"demo"', '"photos.toml"'))
    shown = vitp(*words_of(recipe, project, tmp_path / "photos"))
    assert "no figures: its manifest names no `labels`" in shown and "exported: " in shown
    vitp(
        "export-results", *words_of(project.recipe, project, copied)[1:], "--format", "label-png", "--variant=generator"
    )
    for path in copied.glob("exports/label-png-*/results/**/*.png"):
        (own,) = (tmp_path / "photos").glob(f"exports/label-png-*/results/{path.name}")
        assert own.read_bytes() == path.read_bytes()


def test_a_recipe_of_init_without_a_generator_takes_imported_masks(
    project: Project, vitp: Vitp, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    own = project.recipe.read_text()
    named = '"{package}/demo/generator_config.py"', '"{package}/demo/generator.safetensors"'
    for value in named:
        own = own.replace(value, f'"{TO_FILL_IN}"')
    recipe.write_text(own)
    assert own.count(TO_FILL_IN) == 2
    loaded = load_recipe(recipe)
    assert pipeline_settings(loaded, {}, out).generate is not None, "nothing is imported: the generator is missed"
    vitp("import-proposals", *words_of(recipe, project, out)[1:], "--from", "ground-truth")
    shown = vitp(*words_of(recipe, project, out))
    assert "upper bound" in shown and "generator (α = 0)" not in shown


def test_what_is_missing_is_said_before_the_generator_runs(project: Project, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(project.recipe.read_text() + 'weights = "nowhere.safetensors"\n')
    loaded = load_recipe(recipe)
    with pytest.raises(Exception, match=r"nowhere.safetensors: this file does not exist"):
        Pipeline(loaded, pipeline_settings(loaded, {}, tmp_path / "run"), project.data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="there is no table 'clasify'"):
        divided({"clasify.points": "max"})
