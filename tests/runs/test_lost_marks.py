"""Files that say that something is done: `verify` names one that was there and is gone, none that was not yet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cluster.making import content, new_run, work
from tests.stages.making import Project, make_project, make_run
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.storage.copies import LAST, write_last
from vitp_pipeline.storage.fs_ops import watched
from vitp_pipeline.storage.layout import index_path
from vitp_pipeline.storage.locks import locked
from vitp_pipeline.storage.sealed import read_sealed


def named(root: Path) -> dict[str, bool]:
    """Files that `verify` names, and whether it can fix them."""
    return {d.path.relative_to(root).as_posix(): d.fix is not None for d in verify_run(root).damages}


def hint(root: Path) -> None:
    assert repair(verify_run(root).damages) == [] and named(root) == {}


def done(run: StageRun, shard: int) -> Path:
    return run.shard_folder(shard) / "done.json"


# ---- shards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [[0], [1], [2], [0, 1], [0, 1, 2, 3]])
def test_done_is_missed_where_all_parts_are_there(tmp_path: Path, shards: list[int]) -> None:
    run = new_run(tmp_path, 11, 4)
    work(run, bad=["i3"])
    good = content(run)
    for shard in shards:
        done(run, shard).unlink()
    assert named(tmp_path) == {f"proposals/shards/{shard:05d}/done.json": True for shard in shards}
    hint(tmp_path)
    assert content(run) == good  # without a rerun


NOT_YET = {
    "no shard is begun": [],
    "a shard has not begun": [0],
    "a part is missing": [0, 1],
    "no part is there": [0, 1],
    "a task is at work": [0, 1],
    "a task was killed before its end": [0, 1],
    "more shards than images": [0, 1],
}


@pytest.mark.parametrize("state", NOT_YET)
def test_what_was_never_done_is_not_missed(tmp_path: Path, state: str) -> None:
    run = new_run(tmp_path, 1 if state == "more shards than images" else 7, 2)
    work(run, NOT_YET[state])
    if state.startswith(("a part", "no part")):
        done(run, 1).unlink()
        for part in range(len(run.parts(1)))[: 1 if state.startswith("a part") else None]:
            index_path(run.shard_folder(1), part).unlink()
    if state.startswith("a task"):
        done(run, 1).unlink()
        (run.shard_folder(1) / "lock").touch()
    if state == "a task is at work":
        with locked(run.shard_folder(1) / "lock"):
            assert named(tmp_path) == {}
    else:
        assert named(tmp_path) == {}


# ---- figures, and digests of an export ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    folder = tmp_path_factory.mktemp("measured")
    project = make_project(folder, 3)
    make_run(project, folder / "run", shards=2)
    result_of(project.evaluate(folder / "run"))
    return project, folder / "run"


BAD = {
    "gone": None,
    "empty": b"",
    "cut": lambda text: text[:-40],
    "a digit": lambda text: text.replace(b'"alpha": 0.4', b'"alpha": 0.5', 1),
    "no text": lambda text: b"\xff" + text[1:],
}


@pytest.mark.parametrize("bad", BAD)
def test_figures_come_back_as_they_were(measured: tuple[Project, Path], tmp_path: Path, bad: str) -> None:
    run = shutil.copytree(measured[1], tmp_path / "run")
    (path,) = run.glob("evaluation/*/result.json")
    good, change = path.read_bytes(), BAD[bad]
    path.unlink() if change is None else path.write_bytes(change(good) if callable(change) else change)
    assert named(run) == {path.relative_to(run).as_posix(): True}
    hint(run)
    assert path.read_bytes() == good


def test_an_evaluation_without_figures_yet_lacks_none(measured: tuple[Project, Path], tmp_path: Path) -> None:
    project, _ = measured
    make_run(project, tmp_path / "run", shards=2)
    evaluation = project.evaluate(tmp_path / "run")  # as an array of tasks does
    assert named(tmp_path / "run") == {}
    result_of(evaluation)
    for shard in range(2):  # it follows from counts and sums, which are all there
        good = done(evaluation.run, shard).read_bytes()
        done(evaluation.run, shard).unlink()
        assert list(named(tmp_path / "run").values()) == [True]
        hint(tmp_path / "run")
        assert done(evaluation.run, shard).read_bytes() == good


def test_the_end_of_an_evaluation_without_its_sums_takes_a_rerun(
    measured: tuple[Project, Path], tmp_path: Path
) -> None:
    project, run = measured[0], shutil.copytree(measured[1], tmp_path / "run")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.parent.name != "log"}
    (folder,) = run.glob("evaluation/*/shards/00000")
    for name in ("done.json", "_totals.parquet"):
        (folder / name).unlink()
    (damage,) = verify_run(run).damages
    assert damage.path.name == "done.json" and damage.rerun and repair([damage]) == []
    result_of(project.evaluate(run))
    assert {p: p.read_bytes() for p in before} == before and named(run) == {}


@pytest.mark.parametrize("name", LAST)
def test_a_task_killed_while_it_writes_a_last_file_leaves_nothing_to_name(tmp_path: Path, name: str) -> None:
    """And a file that is lost after that comes back as it was, or not at all: never as it had been before."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    for number in range(60):
        root = tmp_path / str(number)
        run = new_run(root)
        work(run)
        write_last(run.store, run.folder / name, {"files": {}, "x": 1})
        left = number
        try:
            with watched(kill):
                write_last(run.store, run.folder / name, {"files": {}, "x": 2})
        except Killed:
            pass
        else:
            break
        assert named(root) == {}, number
        then = read_sealed(run.folder / name)["x"]
        (run.folder / name).unlink()
        repair(verify_run(root).damages)
        assert named(root) == {}
        if (run.folder / name).exists():
            assert read_sealed(run.folder / name)["x"] == then
    assert 10 < number < 59


def test_copies_are_made_again_with_what_was_written_last(measured: tuple[Project, Path], tmp_path: Path) -> None:
    run = shutil.copytree(measured[1], tmp_path / "run")
    (path,) = run.glob("evaluation/*/copies.json")
    good = path.read_bytes()
    assert "result.json" in json.loads(good)["files"]
    for bad in (b"", good[:-1], None):
        path.unlink() if bad is None else path.write_bytes(bad)
        assert named(run) == {path.relative_to(run).as_posix(): True}
        hint(run)
        assert path.read_bytes() == good
