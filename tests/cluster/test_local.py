"""The local engine, with a toy in place of vitp: what runs when, and what a failure ends."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from tests.cluster.making import make_chain
from vitp_pipeline.cluster import local
from vitp_pipeline.cluster.local import Slot, make_slots, report, run_chain, visible_gpus
from vitp_pipeline.cluster.plan import Chain, Job
from vitp_pipeline.errors import PartialError, StoppedError, UserError
from vitp_pipeline.runtime import signals
from vitp_pipeline.runtime.signals import SIGNALS, noticing_signals

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a chain of toys in which some tasks end with another code than 0; gives their traces by name."""
    monkeypatch.setattr(local, "MAIN", "tests.cluster.toy")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def engine(chain: Chain, slots: list[Slot], codes: dict[str, int] | None = None) -> dict[str, dict]:
        (tmp_path / "codes.json").write_text(json.dumps(codes or {}))
        (tmp_path / "trace.jsonl").unlink(missing_ok=True)
        words = ("--out", str(tmp_path))
        jobs = tuple(Job(j.stage, (j.stage, *words), j.shards, j.same_shard, j.all_of) for j in chain.jobs)
        report(run_chain(Chain(chain.shards, jobs), tmp_path / "log", slots), tmp_path / "log")
        return traces(tmp_path)

    return engine


def traces(folder: Path) -> dict[str, dict]:
    return {e["name"]: e for e in map(json.loads, (folder / "trace.jsonl").read_text().splitlines())}


def test_everything_runs_once_after_what_it_needs(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("VITP_SHARDS", "0-9")
    found = engine(make_chain(3, scores=[0, 2]), make_slots(2, [], CORES))
    assert sorted(found) == sorted(
        ["train-classifier", "merge", "classify 0", "classify 2"]
        + [f"{stage} {s}" for stage in ("generate-proposals", "evaluate") for s in range(3)]
    )

    def after(task: str, *before: str) -> None:
        assert all(found[task]["begun"] > found[b]["ended"] for b in before)

    for s in (0, 2):
        after(f"classify {s}", f"generate-proposals {s}", "train-classifier")
        after(f"evaluate {s}", f"classify {s}")
    after("merge", "evaluate 0", "evaluate 1", "evaluate 2")
    assert found["classify 2"]["shard"] == "2/3" and found["merge"]["shard"] == "all"
    at_once = max(sum(a["begun"] <= b["begun"] < a["ended"] for a in found.values()) for b in found.values())
    assert at_once <= 2
    # no scheduler's index reaches a task: merge would work on one shard
    assert all(e["seen"]["SLURM_ARRAY_TASK_ID"] is None and e["seen"]["VITP_SHARDS"] is None for e in found.values())


def test_a_failure_ends_what_needs_it_and_nothing_else(engine, tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match="submit: generate-proposals 1 failed, 3 dependent tasks were skipped") as info:
        engine(make_chain(2), make_slots(2, [], CORES), {"generate-proposals 1": 8})
    assert info.value.exit_code == 8 and str(tmp_path / "log") in str(info.value)
    found = traces(tmp_path)
    assert {"classify 0", "evaluate 0", "train-classifier"} <= set(found)
    assert not {"classify 1", "evaluate 1", "merge"} & set(found)
    assert re.search(r"generate-proposals 1: failed after \d+ s \(vitp: this is why\)", capsys.readouterr().err)
    assert "this is why" in (tmp_path / "log/generate-proposals-1.log").read_text()


def test_different_failures_and_signals(engine, capsys) -> None:
    with pytest.raises(UserError) as info:
        engine(make_chain(2), make_slots(2, [], CORES), {"generate-proposals 1": 8, "train-classifier": 3})
    assert info.value.exit_code == 1
    with pytest.raises(UserError) as info:
        engine(make_chain(1), make_slots(1, [], CORES), {"train-classifier": -9})
    assert info.value.exit_code == 1 and "killed by signal 9" in capsys.readouterr().err


def test_failed_images_do_not_end_the_chain_but_are_said(engine) -> None:
    with pytest.raises(PartialError, match="images failed in generate-proposals 0, merge"):
        engine(make_chain(1), make_slots(1, [], CORES), {"generate-proposals 0": 7, "merge": 7})


@pytest.mark.parametrize(("number", "code"), [(s, 130 if s == signal.SIGINT else 75) for s in SIGNALS])
def test_a_signal_is_handed_on(engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """The tasks get TERM, and the time to keep what is finished; then the engine ends as every stage does."""
    monkeypatch.setenv("TOY_SECONDS", "60")
    begun = []
    real = local._start
    monkeypatch.setattr(local, "_start", lambda *what: begun.append(work := real(*what)) or work)
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    with noticing_signals(), pytest.raises(StoppedError, match="0 of 8 tasks have ended") as info:
        engine(make_chain(2), make_slots(2, [], CORES))
    assert info.value.exit_code == code
    assert len(begun) == 2 and all(work.process.returncode == -signal.SIGTERM for work in begun)
    assert not (tmp_path / "trace.jsonl").exists()


def test_a_second_signal_ends_the_tasks_at_once(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECONDS", "60")
    monkeypatch.setenv("TOY_DEAF", "1")
    monkeypatch.setattr(signals, "ECHO", 0.0)
    begun = []
    real = local._start
    monkeypatch.setattr(local, "_start", lambda *what: begun.append(work := real(*what)) or work)
    for seconds in (0.5, 0.8):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with noticing_signals(), pytest.raises(SystemExit) as stop:
        engine(make_chain(1), make_slots(1, [], CORES))
    assert stop.value.code == 75 and [work.process.returncode for work in begun] == [-signal.SIGKILL]


def test_the_work_does_not_depend_on_its_logs(engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log/train-classifier.log").mkdir(parents=True)
    assert len(engine(make_chain(1), make_slots(1, [], CORES))) == 5
    assert "train-classifier has no log" in capsys.readouterr().err


def test_slots() -> None:
    assert make_slots(None, [], range(8)) == [Slot(cores=tuple(range(8)))]
    assert make_slots(2, [], range(8)) == [Slot(cores=(0, 1, 2, 3)), Slot(cores=(4, 5, 6, 7))]
    assert [s.cores for s in make_slots(3, [], range(2))] == [(0,), (0,), (1,)] or all(
        len(s.cores) == 1 for s in make_slots(3, [], range(2))
    )
    assert [s.gpus for s in make_slots(None, ["0", "3"], range(8))] == [("0",), ("3",)]
    assert [s.gpus for s in make_slots(3, ["0", "1"], range(8))] == [("0",), ("1",), ("0",)]


def test_a_slot_is_what_a_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    on_cores, on_gpu = Slot(cores=(2, 3)).environment(), Slot(("1",), (0,)).environment()
    assert on_cores["OMP_NUM_THREADS"] == "2" and "CUDA_VISIBLE_DEVICES" not in on_cores
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Slot(cores=(2, 3)).environment()["OMP_NUM_THREADS"] == "5"  # a person's word stands


def test_gpus_that_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, gpus in (("", []), ("-1", []), ("2,0", ["2", "0"]), ("GPU-ab", ["GPU-ab"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert visible_gpus() == gpus
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'; echo 'GPU 1: A (UUID: y)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_planning_a_thousand_shards_is_quick() -> None:
    import time

    began = time.monotonic()
    tasks = local.make_tasks(make_chain(1000))
    assert len(tasks) == 3002 and len(local._ready(tasks, lambda: None)) == 1001
    assert time.monotonic() - began < 2
