"""Every stage on masks of a small model of the Segment Anything family, from a folder as transformers saves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from tests.generators.huggingface.sam_making import make
from tests.pipeline.conftest import Project
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.errors import UsageError

POINTS = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    make(folder / "drawn", "sam", 2)._model.save_pretrained(folder / "model")
    return folder / "model"


def test_all_stages_on_masks_without_classes(project: Project, finished: Path, saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    project.run("generate-proposals", run, config=str(saved), checkpoint="", limit=2, **POINTS)
    store = open_proposals(run)
    records = list(store)
    assert store.class_agnostic and len(records) == 2
    for record in records:
        assert record.class_logits.shape == (27, len(store.classes) + 1)
        assert np.ptp(record.class_logits[:, :-1]) == 0  # every class is equally likely
        assert len(record.points["max"]) == 27
    shutil.copytree(finished / "classifier", run / "classifier")
    project.run("classify", run)
    evaluation, outcome = project.run("evaluate", run, alpha="1")
    assert not outcome.failed and evaluation.run.holds(0, 0)


def test_a_point_more_is_another_run_and_a_batch_is_not(project: Project, saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {"config": str(saved), "checkpoint": "", "limit": 1, **POINTS}
    project.run("generate-proposals", run, **given)
    project.run("generate-proposals", run, **given, points_per_batch=2)
    with pytest.raises(Exception, match="points_per_side"):
        project.run("generate-proposals", run, **{**given, "points_per_side": 4})


def test_images_without_masks_pass_through(project: Project, finished: Path, saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {**POINTS, "stability_score_thresh": 1.0}
    project.run("generate-proposals", run, config=str(saved), checkpoint="", limit=2, **given)
    assert [len(record.class_logits) for record in open_proposals(run)] == [0, 0]
    shutil.copytree(finished / "classifier", run / "classifier")
    project.run("classify", run)
    _, outcome = project.run("evaluate", run, alpha="1")
    assert not outcome.failed


def test_keys_of_the_grid_are_refused_elsewhere(project: Project, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"points_per_side .*Segment Anything"):
        project.run("generate-proposals", tmp_path / "a", points_per_side=4)
    with pytest.raises(UsageError, match="SAM has neither task nor test_size"):
        project.run("generate-proposals", tmp_path / "b", config=str(saved), checkpoint="", test_size=(64, 64))
