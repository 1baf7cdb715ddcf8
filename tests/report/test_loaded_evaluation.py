from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.stages.making import Project
from vitp_pipeline.errors import IncompatibleError, InputError, MissingStageError, UsageError
from vitp_pipeline.evaluation.count_reader import read_rows
from vitp_pipeline.evaluation.definition import headline_variants
from vitp_pipeline.report.loaded_evaluation import (
    StoredEvaluation,
    classifier_name,
    find_evaluation,
    open_evaluation,
    provenance_of,
)


def test_an_evaluation_is_found_again_as_it_was(stored: StoredEvaluation, project: Project, run: Path) -> None:
    again = project.evaluate(run, "0:1:0.2")  # there already: prepares, measures nothing
    assert stored.evaluation.run.identity == again.run.identity
    assert stored.evaluation.alphas == again.alphas and stored.evaluation.headline == again.headline == "alpha:0.4"
    assert stored.evaluation.variants == again.variants
    assert stored.evaluation.settings.object_threshold == 0.4 and stored.evaluation.settings.overlap_threshold == 0.5
    assert stored.classes == ("sky", "road", "car") and stored.has_data
    assert len(stored.rows.images) == 7


def test_only_rows_that_pages_look_at_are_read(stored: StoredEvaluation) -> None:
    every = read_rows(stored.evaluation)
    numbers = [headline_variants(stored.evaluation)[name] for name in ("generator", "fused")]
    assert set(stored.rows.columns) == {"semantic", "panoptic", "masks"} and stored.rows.images == every.images
    for name, entries in stored.rows.columns.items():
        whole = every.columns[name]
        wanted = np.isin(whole["variant"], numbers) if "variant" in whole else np.ones(len(whole["image"]), bool)
        assert all(np.array_equal(entries[field], whole[field][wanted]) for field in whole)
        # what docs/report.md says of their size, with the number of the image
        size = sum(values.itemsize for values in entries.values())
        assert size == {"semantic": 28, "panoptic": 48, "masks": 36}[name]
        assert wanted.all() == (name == "masks")


def test_of_a_run_the_newest_evaluation_is_taken(run: Path, folders: list[Path]) -> None:
    assert find_evaluation(run)[1:] == (folders[1], False)
    assert find_evaluation(folders[0])[1:] == (folders[0], True)
    assert open_evaluation(run).evaluation.alpha == 0.8


def test_without_data_root_a_manifest_is_not_needed(folders: list[Path]) -> None:
    stored = open_evaluation(folders[0])
    assert not stored.has_data and stored.classes == ("sky", "road", "car")
    assert stored.result["semantic"]["fused"]["mIoU"] > 0


def test_figures_of_an_unfinished_evaluation_come_from_its_rows(folders: list[Path], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run/evaluation" / folders[0].name
    (folder / "result.json").unlink(missing_ok=True)
    (folder / "shards/00001/done.json").unlink()
    stored = open_evaluation(folder)
    assert stored.result["images"] == {"measured": 3, "of": 7, "failed": []}
    assert not (folder / "result.json").exists()  # a report writes nothing into an evaluation


def test_what_cannot_be_opened_is_said_in_a_line(project: Project, run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        open_evaluation(tmp_path / "nothing")
    with pytest.raises(MissingStageError, match="vitp evaluate"):
        open_evaluation(tmp_path)
    with pytest.raises(UsageError, match="--recipe"):
        open_evaluation(run, project.root)
    with pytest.raises(IncompatibleError, match="another manifest"):
        open_evaluation(run, project.root, "camvid")


def test_provenance_names_every_stage(stored: StoredEvaluation, run: Path) -> None:
    entries = provenance_of(stored)
    assert [entry["folder"].split("/")[0] for entry in entries] == ["proposals", "class_scores", "evaluation"]
    for entry in entries:
        content = json.loads((run / entry["folder"] / "run.json").read_text())
        assert entry["fingerprint"] == content["fingerprint"] and entry["command"] == content["provenance"]["command"]
    # drawn weights are no classifier of a training: they are named by their digest
    assert stored.evaluation.class_scores.identity["classifier"].startswith(classifier_name(stored))
