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

KILLS = int(os.environ.get("VITP_KILLS", "3"))
"""Kills per stage; `make test-long` sets 20."""


def _stage(project: Project, stage: str, out: Path) -> None:
    # often enough that a kill falls between checkpoints
    settings = {"checkpoint_minutes": 0.001} if stage == "train-classifier" else {}
    project.run(stage, out, **settings)


@pytest.fixture(scope="module")
def server():
    """Processes forked from one that has imported the heavy packages: they start in milliseconds and die for real."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.preload"])
    return context


@pytest.mark.kill
@pytest.mark.parametrize("stage", STAGES)
def test_kill_and_run_again(stage: str, project: Project, finished: Path, tmp_path: Path, server) -> None:
    before = tmp_path / "before"
    project_stages = STAGES[: STAGES.index(stage)]
    before.mkdir()
    for name in project_stages:  # what the stage reads
        folder = {"generate-proposals": "proposals", "train-classifier": "classifier", "classify": "classes"}[name]
        shutil.copytree(finished / folder, before / folder)
    began = time.monotonic()
    _run_to_end(server, project, stage, _fresh(before, tmp_path / "timing"))
    whole = time.monotonic() - began

    rng = random.Random(f"kill {stage}")
    out = _fresh(before, tmp_path / "run")
    kills = 0
    while kills < KILLS:
        process = server.Process(target=_stage, args=(project, stage, out))
        process.start()
        process.join(rng.uniform(0.05, 1.0) * whole)
        committed = _committed(out)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            process.join()
        else:
            assert process.exitcode == 0
            out = _fresh(before, out)  # it got through: start over
            continue
        # what was committed before the kill is still there, untouched
        after = _committed(out)
        assert committed.items() <= after.items()
    _run_to_end(server, project, stage, out)
    assert committed.items() <= _committed(out).items()
    expected = {k: v for k, v in snapshot(finished).items() if k in snapshot(out)}
    assert snapshot(out) == expected
    made = [k for k in snapshot(finished) if k.startswith(_folder(stage))]
    assert made and all(k in expected for k in made)


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


def _folder(stage: str) -> str:
    folders = ("proposals", "classifier", "classes", "evaluation")
    return folders[STAGES.index(stage)]


def _fresh(before: Path, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(before, out)
    return out


def _run_to_end(server, project: Project, stage: str, out: Path) -> None:
    process = server.Process(target=_stage, args=(project, stage, out))
    process.start()
    process.join()
    assert process.exitcode == 0


def _committed(out: Path) -> dict[str, tuple[int, int]]:
    """(inode, mtime) of every committed part."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.rglob("part-*.parquet")}
