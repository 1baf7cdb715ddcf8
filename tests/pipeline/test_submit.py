"""What is left of a run is found, run and repaired, with the real stages."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project, snapshot
from vitp_pipeline.cluster.plan import Request, plan_chain
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.verify import report, verify_run


def planned(request: Request, begin: bool = True) -> dict[str, tuple[int, ...] | None]:
    return {job.stage: job.shards for job in plan_chain(request, begin).jobs}


@pytest.mark.slow
def test_what_is_left_of_a_run(project: Project, tmp_path: Path) -> None:
    out, every = tmp_path / "run", (0, 1, 2)
    request = Request(str(project.recipe), project.data, out, 3)
    arrays = dict.fromkeys(("generate-proposals", "classify", "evaluate"), every)
    whole = arrays | {"train-classifier": None, "merge": None}
    assert planned(request, begin=False) == whole and not out.exists()  # looking writes nothing
    assert planned(request) == whole
    assert planned(dataclasses.replace(request, shards=None)) == whole  # the run has its number now
    with pytest.raises(UsageError, match="3 shards, not 4"):
        plan_chain(dataclasses.replace(request, shards=4), begin=True)
    with pytest.raises(UsageError, match="3 shards, not 4"):
        plan_chain(dataclasses.replace(request, shards=4), begin=False)

    project.run("generate-proposals", out, "1/3")
    assert planned(request)["generate-proposals"] == (0, 2)
    project.run("train-classifier", out)
    assert "train-classifier" not in planned(request)
    file = out / "classifier/default/model.safetensors"
    elsewhere = dataclasses.replace(request, classifier=str(file), name="other")
    assert "train-classifier" not in planned(elsewhere) and "train-classifier" in planned(
        dataclasses.replace(request, name="other")
    )
    project.run("classify", out, "1/3")
    assert planned(request) == {**arrays, "generate-proposals": (0, 2), "classify": (0, 2), "merge": None}
    project.run("generate-proposals", out)
    project.run("classify", out)
    evaluation, _ = project.run("evaluate", out, "2/3")
    assert planned(request) == {"evaluate": (0, 1), "merge": None}
    assert planned(dataclasses.replace(request, alpha="0.7")) == {"evaluate": every, "merge": None}
    project.run("evaluate", out)
    assert planned(request) == {"merge": None}
    result_of(evaluation)
    assert planned(request) == {}
    before = snapshot(out)
    assert planned(request) == {} and snapshot(out) == before

    text = project.recipe.read_text()
    other = tmp_path / "other.toml"
    for change, error in (("part_size = 2", "part_size = 3"), ("epochs = 4", "epochs = 5")):
        other.write_text(text.replace(change, error))
        with pytest.raises(IncompatibleError, match="made with other settings"):
            plan_chain(dataclasses.replace(request, recipe=str(other)), begin=True)


def test_the_generator_alone_needs_neither_training_nor_class_scores(project: Project, tmp_path: Path) -> None:
    out, every = tmp_path / "run", (0, 1, 2)
    request = Request(str(project.recipe), project.data, out, 3, alpha="0")
    whole = {"generate-proposals": every, "evaluate": every, "merge": None}
    assert planned(request, begin=False) == planned(request) == whole
    evaluate = next(job for job in plan_chain(request, begin=True).jobs if job.stage == "evaluate")
    assert evaluate.same_shard == "generate-proposals"
    project.run("generate-proposals", out)
    assert planned(request) == {"evaluate": every, "merge": None}
    assert "train-classifier" in planned(dataclasses.replace(request, alpha="0:1:0.5"))


def test_failed_images_are_left_alone_unless_asked_for(project: Project, tmp_path: Path) -> None:
    data, out = tmp_path / "scenes", tmp_path / "run"
    shutil.copytree(project.data, data)
    broken = max((data / "images/val").iterdir())
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    here = Project(data, project.recipe)
    assert len(here.run("generate-proposals", out, "/3").failed) == 1
    request = Request(str(project.recipe), data, out)
    assert "generate-proposals" not in planned(request)
    again = dataclasses.replace(request, retry_failed=True)
    assert planned(again)["generate-proposals"] == (2,)
    assert "--retry-failed" in again.command("generate-proposals")


@pytest.mark.parametrize("stage", ["generate-proposals", "classify", "evaluate"])
def test_a_flipped_byte_is_found_and_the_rerun_makes_the_same_bytes(stage: str, project: Project, copied: Path) -> None:
    folder = {"generate-proposals": "proposals", "classify": "class_scores", "evaluate": "evaluation"}[stage]
    before = snapshot(copied)
    assert verify_run(copied).damages == []
    parts = sorted(p for p in (copied / folder).rglob("part-0002*"))
    assert [p.suffix for p in parts] == ([".zip", ".parquet"] if stage != "evaluate" else [".parquet"])
    for path in parts:
        flipped = bytearray(path.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
        checked = verify_run(copied)
        assert [damage.path for damage in checked.damages] == [path]
        report(copied, checked, repair(checked.damages))
        assert not path.exists()
        project.run(stage, copied)
        assert snapshot(copied) == before and verify_run(copied).damages == []
