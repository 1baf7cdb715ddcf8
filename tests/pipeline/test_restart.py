"""Killed at any moment and started again, every stage ends with the same bytes and redoes at most one part."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import STAGES, Project, snapshot

KILLS = int(os.environ.get("VITP_KILLS", "6"))
"""Kills per stage."""


def _stage(project: Project, stage: str, out: Path, shard: str | None = None) -> None:
    # often enough that a kill falls between checkpoints
    settings = {"checkpoint_minutes": 0.001} if stage == "train-classifier" else {}
    project.run(stage, out, shard, **settings)


@pytest.fixture(scope="module")
def server():
    """Processes forked from one that has imported the heavy packages: they start in milliseconds and die for real."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.preload"])
    return context


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("stage", STAGES)
def test_kill_and_run_again(stage: str, project: Project, finished: Path, tmp_path: Path, server) -> None:
    before = tmp_path / "before"
    project_stages = STAGES[: STAGES.index(stage)]
    before.mkdir()
    for name in project_stages:  # what the stage reads
        folder = {"generate-proposals": "proposals", "train-classifier": "classifier", "classify": "class_scores"}[name]
        shutil.copytree(finished / folder, before / folder)
    out = _fresh(before, tmp_path / "run")
    whole = _timed_run(server, project, stage, out)  # the longest moment to kill at

    rng, kills, fresh, committed = random.Random(f"kill {stage}"), 0, False, {}
    while kills < KILLS or not _same(out, finished, stage):
        if _same(out, finished, stage):  # it got through: start over
            out, fresh, committed = _fresh(before, out), True, {}
        process = server.Process(target=_stage, args=(project, stage, out))
        began = time.monotonic()
        process.start()
        process.join(rng.uniform(0.05, 1.0) * whole if kills < KILLS else None)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0 and _same(out, finished, stage)
            if fresh:
                whole = min(whole, time.monotonic() - began)
        fresh = False
        # what was committed is still there, untouched
        assert committed.items() <= (committed := _committed(out)).items()


@pytest.mark.slow
@pytest.mark.kill
def test_two_tasks_on_one_shard(project: Project, tmp_path: Path, server) -> None:
    """The second one notices, whoever comes first, and the result is whole."""
    out = tmp_path / "run"
    tasks = [server.Process(target=_stage, args=(project, STAGES[0], out)) for _ in range(2)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert sorted(task.exitcode for task in tasks) in ([0, 1], [0, 0])  # 1: LockedError; 0, 0: one after the other
    assert (out / "proposals" / "shards" / "00000" / "done.json").exists()


@pytest.mark.slow
def test_two_shards_at_once(project: Project, finished: Path, tmp_path: Path, server) -> None:
    """Two processes on two shards of one new run, through all stages: the figures of one process."""
    from vitp_pipeline.evaluation.summary import result_of

    out = tmp_path / "run"
    for stage in STAGES:
        shards = (None,) if stage == "train-classifier" else ("0/2", "1/2")
        tasks = [server.Process(target=_stage, args=(project, stage, out, shard)) for shard in shards]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
        assert [task.exitcode for task in tasks] == [0] * len(tasks)
    results = [result_of(project.run("evaluate", run)[0]) for run in (out, finished)]
    for task in ("semantic", "panoptic", "masks", "images"):
        assert results[0][task] == results[1][task]


def _same(out: Path, finished: Path, stage: str) -> bool:
    """Whether a run holds the results of a stage, byte for byte; an unfinished one lacks some."""
    folder = ("proposals", "classifier", "class_scores", "evaluation")[STAGES.index(stage)]
    made, expected = ({k: v for k, v in snapshot(run).items() if k.startswith(folder)} for run in (out, finished))
    return made == expected


def _fresh(before: Path, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(before, out)
    return out


def _run_to_end(server, project: Project, stage: str, out: Path) -> None:
    process = server.Process(target=_stage, args=(project, stage, out))
    process.start()
    process.join()
    assert process.exitcode == 0


def _timed_run(server, project: Project, stage: str, out: Path) -> float:
    began = time.monotonic()
    _run_to_end(server, project, stage, out)
    return time.monotonic() - began


def _committed(out: Path) -> dict[str, tuple[int, int]]:
    """(inode, mtime) of every committed part."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.rglob("part-*.parquet")}
