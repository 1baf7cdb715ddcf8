"""A toy run with two evaluations, and its page. Made once; nothing here is changed by a test."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.stages.making import Project, make_project, make_run
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, open_evaluation
from vitp_pipeline.report.report import write_report


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("report"), 7)


@pytest.fixture(scope="session")
def run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 images in two shards, evaluated with α = 0.4 and then with 0.8."""
    out = tmp_path_factory.mktemp("run") / "toy"
    make_run(project, out, shards=2)
    project.evaluate(out, "0:1:0.2")
    time.sleep(1.1)  # "newest" is told by the second
    project.evaluate(out, "0,1", alpha=0.8)
    return out


@pytest.fixture(scope="session")
def folders(run: Path) -> list[Path]:
    """The evaluations' folders, older first."""
    by_alphas = {
        len(path.read_text().split('"alphas"')[1].split("]")[0].split(",")): path.parent
        for path in run.glob("evaluation/*/run.json")
    }
    return [by_alphas[max(by_alphas)], by_alphas[min(by_alphas)]]


@pytest.fixture(scope="session")
def stored(project: Project, folders: list[Path]) -> StoredEvaluation:
    return open_evaluation(folders[0], project.root, str(project.recipe.path))


@pytest.fixture(scope="session")
def page(stored: StoredEvaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(stored, path)
    return path
