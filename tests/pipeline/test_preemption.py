"""Told to stop by a signal, every stage keeps what is finished, and ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.conftest import STAGES, Project, snapshot
from vitp_pipeline.artifacts.parts import read_index
from vitp_pipeline.errors import StoppedError, UserError
from vitp_pipeline.execution.runner import WorkBudget
from vitp_pipeline.runtime import signals

STOPS = int(os.environ.get("VITP_STOPS", "3"))
"""Signals per stage."""
FOLDERS = dict(zip(STAGES, ("proposals", "classifier", "class_scores", "evaluation"), strict=True))


def before(stage: str, finished: Path, out: Path) -> Path:
    """A run with all that a stage reads."""
    out.mkdir()
    for name in STAGES[: STAGES.index(stage)]:
        shutil.copytree(finished / FOLDERS[name], out / FOLDERS[name])
    return out


def results(run: Path, stage: str) -> dict[str, bytes]:
    return {k: v for k, v in snapshot(run).items() if k.startswith(FOLDERS[stage])}


@pytest.fixture
def stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes while the first images of every turn are made."""

    def over(budget: WorkBudget) -> bool:
        signals._wanted = "SIGTERM"
        return True

    monkeypatch.setattr(signals, "_wanted", "")
    monkeypatch.setattr(WorkBudget, "over", over)


def stops(work: Callable[[], object]) -> int:
    """Does the work again and again until it gets through; how often it was stopped."""
    for count in range(50):
        signals._wanted = ""
        try:
            work()
        except StoppedError:
            continue
        return count
    raise AssertionError("it makes no progress")


@pytest.mark.parametrize("stage", ["generate-proposals", "classify", "evaluate"])
def test_stopped_after_every_image(
    stage: str, project: Project, finished: Path, tmp_path: Path, stopped_at_once: None
) -> None:
    out = before(stage, finished, tmp_path / "run")
    one = {} if stage == "evaluate" else {"batch_size": 1}
    assert stops(lambda: project.run(stage, out, **one)) == 8  # of nine images
    assert results(out, stage) == results(finished, stage)
    assert not list(out.rglob("_partial-*"))


def test_batches_do_not_depend_on_stops(project: Project, tmp_path: Path, finished: Path, request) -> None:
    """Of several views, three at once: an image's views lie in two batches, and a batch holds views of two images."""
    views = {"scales": (0.5, 1.0), "flip": True, "part_size": 4, "limit": 4}
    outs = [tmp_path / "whole", tmp_path / "stopped"]
    for out in outs:
        shutil.copytree(finished / "classifier", out / "classifier")
        if out is outs[1]:
            request.getfixturevalue("stopped_at_once")
        count = stops(lambda out=out: project.run("generate-proposals", out, **views, batch_size=1))
        assert count == (3 if out is outs[1] else 0)
        count = stops(lambda out=out: project.run("classify", out, batch_size=3))
        assert (count > 0) == (out is outs[1])
    assert results(outs[0], "classify") == results(outs[1], "classify")
    assert results(outs[0], "generate-proposals") == results(outs[1], "generate-proposals")


@pytest.mark.parametrize("fit", ["gradient", "lda"])
def test_a_stopped_training_has_saved_its_last_step(
    fit: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitp_pipeline.classifier.training.lda as lda
    import vitp_pipeline.classifier.training.loop as train

    settings = {"fit": fit, "norm": "none"} if fit == "lda" else {}
    project.run("train-classifier", tmp_path / "whole", **settings)
    for module in (train, lda):
        monkeypatch.setattr(module, "stop_wanted", lambda: True)
    count = stops(lambda: project.run("train-classifier", tmp_path / "run", **settings))
    assert count == 7  # 8 images, batches of 4, 4 epochs: each step but the last is one run
    assert results(tmp_path / "run", "train-classifier") == results(tmp_path / "whole", "train-classifier")


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.preload"])
    return context


def _stage(project: Project, stage: str, out: Path) -> None:
    with signals.noticing_signals():
        try:
            project.run(stage, out)
        except UserError as error:
            sys.exit(error.exit_code)


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("stage", STAGES)
def test_signals_at_random_moments(stage: str, project: Project, finished: Path, tmp_path: Path, server) -> None:
    out = before(stage, finished, tmp_path / "run")
    rng, done, codes = random.Random(f"stop {stage}"), -1, []
    while 0 not in codes:
        process = server.Process(target=_stage, args=(project, stage, out))
        process.start()
        if len(codes) < STOPS:
            _wait_for_lock(out / FOLDERS[stage], process)  # before, Python may not have its handlers yet
            process.join(rng.uniform(0.0, 0.8))
            if process.is_alive():
                os.kill(process.pid, rng.choice(signals.SIGNALS))
        process.join(60)
        codes.append(process.exitcode)
        assert codes[-1] in (0, 75, 130)
        assert done <= (done := _progress(out, stage))  # nothing that was finished is lost
    assert results(out, stage) == results(finished, stage)


def _wait_for_lock(folder: Path, process) -> None:
    while process.is_alive():
        with contextlib.suppress(FileNotFoundError):
            if any(f"process {process.pid}\n" in path.read_text() for path in folder.rglob("lock")):
                return
        time.sleep(0.005)


def _progress(out: Path, stage: str) -> int:
    """Images that are finished, committed or not; of a training its steps."""
    if stage == "train-classifier":
        import torch

        folder = out / "classifier/default"
        if (folder / "done.json").exists():
            return 1000
        path = folder / "checkpoint.pt"
        return torch.load(path, weights_only=True)["step"] if path.exists() else 0
    files = [p for p in out.rglob("*.parquet") if p.relative_to(out).parts[0] == FOLDERS[stage]]
    return sum(read_index(path, ["image_id"]).num_rows for path in files)
