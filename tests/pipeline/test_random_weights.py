"""A generator without weights: refused, unless the recipe says that they are random, which every output then says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project
from vitp_pipeline.cli.main import main
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.generators.registry import find_source
from vitp_pipeline.report.loaded_evaluation import open_evaluation
from vitp_pipeline.report.report import write_report
from vitp_pipeline.runs.status import print_status, run_status

WITHOUT = {
    "a config file of OpenMMLab": "{package}/demo/generator_config.py",
    "a packaged config": "mask2former_swin-t_8xb2-160k_ade20k-512x512",
    "a config.json of transformers": "FOLDER/config.json",
    "a folder of transformers": "FOLDER",
}


@pytest.mark.parametrize("name", WITHOUT)
def test_no_weights_are_refused_and_random_ones_allowed(name: str, tmp_path: Path, project: Project) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "oneformer"}))
    recipe = load_recipe(project.recipe)

    def find(checkpoint: str, with_weights: bool = True):
        settings = ProposalSettings(WITHOUT[name].replace("FOLDER", str(folder)), checkpoint)
        return find_source(settings, lambda text: recipe.find_file(text, project.data), with_weights)

    with pytest.raises((UsageError, InputError), match="no weights") as caught:
        find("")
    assert 'checkpoint = "random"' in str(caught.value) and "\n" not in str(caught.value)
    for source in (find("random"), find("", with_weights=False)):  # `vitp info` needs none
        model = getattr(source, "model", None)
        assert (model.weights if model else source.checkpoint) in ((), None)


def test_a_class_of_the_user_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("")
    config = f"python:{tmp_path}/own.py:Own"
    own, random = (find_source(ProposalSettings(config, said), Path) for said in ("", "random"))
    assert own.checkpoint is random.checkpoint is None
    assert own.identity(None)["checkpoint"] != random.identity(None)["checkpoint"] == "random weights"


def test_nothing_is_made_without_weights(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights"):
        project.run("generate-proposals", tmp_path / "run", checkpoint="")
    assert not list(tmp_path.rglob("run.json"))


def test_random_weights_are_said_everywhere(
    project: Project, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "run", str(finished / "classifier/default/model.safetensors")
    recipe = tmp_path / "recipe.toml"
    text = project.recipe.read_text().replace('"{package}/demo/generator.safetensors"', '"random"')
    recipe.write_text(text + f'[classify]\nclassifier = "{model}"\n')
    own = Project(project.data, recipe)
    own.run("generate-proposals", out, limit=2)
    assert "random weights" in capsys.readouterr().err
    own.run("classify", out)
    evaluation, _ = own.run("evaluate", out)
    assert any("random weights" in note for note in result_of(evaluation)["notes"])
    entries = run_status(out)
    assert entries[0]["label"] == "random weights"
    print_status(entries, as_json=False)
    assert "random weights" in capsys.readouterr().out
    write_report(open_evaluation(out), tmp_path / "report.html")
    assert "random weights (checkpoint" in (tmp_path / "report.html").read_text()


def test_a_streamed_evaluation_says_so_too(
    project: Project,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def streamed(recipe: Path, out: str) -> str:
        words = ["evaluate", str(recipe), "--data-root", str(project.data), "--out", str(tmp_path / out), "--stream"]
        model = str(finished / "classifier/default/model.safetensors")
        monkeypatch.setattr(sys, "argv", ["vitp", *words, "--classifier", model, "--set", "limit=2"])
        assert main() in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(project.recipe.read_text().replace('"{package}/demo/generator.safetensors"', '"random"'))
    assert "random weights" in streamed(recipe, "random")
    assert "random weights" not in streamed(project.recipe, "own")
