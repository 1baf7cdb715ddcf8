"""Scores of a classifier from outside the run: whoever then asks without it is told its file, and status shows it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.errors import MissingStageError
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.runs.status import print_status, run_status
from vitp_pipeline.stages import evaluate, export_results


@pytest.fixture
def classifier(finished: Path, tmp_path: Path) -> Path:
    """A classifier outside the run, at a path that a shell would divide."""
    (tmp_path / "my models").mkdir()
    for name in ("model.safetensors", "model.json"):
        shutil.copy(finished / "classifier/default" / name, tmp_path / "my models" / name.replace("model", "vitp_ade"))
    return tmp_path / "my models/vitp_ade.safetensors"


@pytest.fixture
def scored(project: Project, finished: Path, classifier: Path, tmp_path: Path) -> Path:
    """A run without a classifier of its own whose proposals a file has scored."""
    shutil.copytree(finished / "proposals", tmp_path / "run/proposals")
    project.run("classify", tmp_path / "run", classifier=str(classifier))
    return tmp_path / "run"


def ask(project: Project, out: Path, command: str, **classify: str) -> None:
    recipe = load_recipe(project.recipe)
    settings, measures = recipe.stage(ClassifySettings, **classify), recipe.stage(EvaluateSettings)
    if command == "evaluate":
        evaluate.prepare(recipe, measures, settings, (), project.data, out, ShardChoice())
    else:
        where = project.data, out, ShardChoice()
        export_results.prepare(recipe, measures, settings, "label-png", "fused", *where)


@pytest.mark.parametrize("command", ["evaluate", "export-results"])
@pytest.mark.parametrize("own", [False, True])
def test_the_flag_that_is_named_works(
    command: str, own: bool, project: Project, finished: Path, scored: Path, classifier: Path
) -> None:
    """Also where the run has a classifier, which has scored nothing."""
    if own:
        shutil.copytree(finished / "classifier/default", scored / "classifier/default")
        (scored / "classifier/default/model.safetensors").write_bytes(b"another")
        (scored / "classifier/default/model.json").unlink()
        (scored / "classifier/default/done.json").unlink()
        (scored / "classifier/default/copies.json").unlink()
    with pytest.raises(MissingStageError) as caught:
        ask(project, scored, command)
    assert "train-classifier` first" not in str(caught.value)
    found = re.search(r"here: give (--classifier .*)", str(caught.value))
    assert found
    flag, file, *_ = shlex.split(found[1])
    assert (flag, Path(file)) == ("--classifier", classifier.resolve())
    ask(project, scored, command, classifier=file)


def test_status_shows_the_files_name(project: Project, scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = {entry["stage"].partition("/")[0]: entry for entry in run_status(scored)}
    assert entries["class_scores"]["label"] == "vitp_ade.safetensors, max point"
    print_status(run_status(scored), as_json=False)
    assert "vitp_ade.safetensors" in capsys.readouterr().out


def test_without_any_scores_the_training_is_named(project: Project, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "proposals", tmp_path / "run/proposals")
    with pytest.raises(MissingStageError, match="Run `vitp train-classifier` first"):
        ask(project, tmp_path / "run", "evaluate")
