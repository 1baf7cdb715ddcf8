"""The whole chain on a real Slurm on this machine: a task is killed and retried by the array expression."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project, snapshot
from vitp_pipeline.stages.results import result_of

pytestmark = pytest.mark.xdist_group("slurm")  # one controller on a machine
PATIENCE = 900
SHARDS = 3


@pytest.fixture(scope="module")
def slurm(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm that runs while these tests do."""
    tool = shared / "tools/local-slurm.sh"
    if not tool.is_file():
        pytest.skip("needs ../shared/tools/local-slurm.sh")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = subprocess.run(["bash", "-c", "command -v slurmctld slurmd munged sbatch"], env={"PATH": path})
    if found.returncode or os.geteuid() != 0:
        pytest.skip("needs Slurm (as root: `local-slurm.sh install`)")
    environment = {
        **os.environ,
        "PATH": path,
        "SLURM_ROOT": str(tmp_path_factory.mktemp("slurm")),
        "SLURM_FAKE_CPUS": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    started = subprocess.run(["bash", tool, "start"], env=environment, capture_output=True, text=True)
    try:
        if started.returncode:
            pytest.skip(f"Slurm does not start here: {started.stderr.splitlines()[-1]}")
        yield {**environment, "SLURM_CONF": f"{environment['SLURM_ROOT']}/etc/slurm.conf"}
    finally:
        subprocess.run(["bash", tool, "stop"], env=environment, capture_output=True)


@pytest.mark.slow
@pytest.mark.kill
def test_a_killed_task_is_retried_by_the_array_expression(
    slurm: dict[str, str], project: Project, tmp_path: Path
) -> None:
    def vitp(*words: str) -> str:
        program = [sys.executable, "-m", "vitp_pipeline.cli.main", *words]
        done = subprocess.run(program, env=slurm, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(*words: str) -> list[str]:
        options = ["--data-root", str(project.data), "--out", str(out), "--engine", "slurm", *words]
        return vitp("submit", str(project.recipe), *options).split()

    out = tmp_path / "run"
    ids = submit("--shards", str(SHARDS))
    assert len(ids) == 5 and len(set(ids)) == 5  # proposals, training, classify, evaluate, merge
    _kill_owner(out / "proposals/shards/00001/lock")

    states = _wait(slurm, ids)
    assert states[f"{ids[0]}_1"] == "FAILED"
    assert {states[f"{ids[0]}_{s}"] for s in (0, 2)} == {"COMPLETED"}
    assert states[f"{ids[2]}_1"] == "CANCELLED" and states[ids[4]] == "CANCELLED"  # nothing waits for ever
    assert {states[f"{job}_{s}"] for job in ids[2:4] for s in (0, 2)} == {"COMPLETED"}
    status = {e["stage"].split("/")[0]: e for e in json.loads(vitp("status", str(out), "--json"))}
    assert {stage: status[stage]["missing"] for stage in status if stage != "classifier"} == {
        "proposals": "1",
        "classes": "1",
        "evaluation": "1",
    }
    assert status["proposals"]["stopped"] == [1] and status["classifier"]["shards_done"] == 1

    # by hand, as the status says; then the rest of the chain
    script = out / "jobs/generate-proposals.sh"
    words = ["sbatch", "--parsable", f"--array={status['proposals']['missing']}", str(script)]
    by_hand = subprocess.run(words, env=slurm, capture_output=True, text=True, check=True).stdout.strip()
    assert _wait(slurm, [by_hand]) == {f"{by_hand}_1": "COMPLETED"}
    rest = submit()
    states = _wait(slurm, rest)
    assert set(states.values()) == {"COMPLETED"} and set(states) == {f"{rest[0]}_1", f"{rest[1]}_1", rest[2]}

    assert submit() == []  # nothing is left to do

    alone = tmp_path / "alone"  # the same shards, one after the other in this process
    project.run("generate-proposals", alone, f"/{SHARDS}")
    for stage in ("train-classifier", "classify"):
        project.run(stage, alone)
    evaluation, _ = project.run("evaluate", alone)
    assert _results(out) == _results(alone)
    (path,) = out.glob("evaluation/*/result.json")
    found, expected = json.loads(path.read_text()), result_of(evaluation)
    for key in ("semantic", "panoptic", "masks", "images"):
        assert found[key] == expected[key]


@pytest.mark.slow
@pytest.mark.kill
def test_a_task_that_is_warned_of_its_time_limit_goes_on_by_itself(
    slurm: dict[str, str], project: Project, finished: Path, tmp_path: Path
) -> None:
    """The warning comes as Slurm sends it, to the shell alone; the chain then ends without anybody's doing."""
    out = tmp_path / "run"
    program = [sys.executable, "-m", "vitp_pipeline.cli.main", "submit", str(project.recipe)]
    words = ["--data-root", str(project.data), "--out", str(out), "--engine", "slurm", "--shards", "1"]
    done = subprocess.run([*program, *words], env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    _wait_for(out / "proposals/shards/00000/lock")
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{ids[0]}_0"], env=slurm, check=True)
    states = _wait(slurm, ids)
    log = next((out / "jobs/log").glob(f"generate-proposals-{ids[0]}_*.log")).read_text()
    assert "SIGTERM: finishing what is being worked on" in log and "stopped by SIGTERM" in log
    assert set(states.values()) == {"COMPLETED"}, states
    found, expected = (
        {k: v for k, v in _results(run).items() if k.startswith(("proposals", "classes"))} for run in (out, finished)
    )
    assert found == expected


def _kill_owner(lock: Path) -> None:
    """Kills the process that works on a shard, as soon as there is one."""
    os.kill(int(_wait_for(lock).split("process ")[1].split()[0]), signal.SIGKILL)


def _wait_for(lock: Path) -> str:
    """What a lock says as soon as somebody holds it."""
    limit = time.monotonic() + PATIENCE
    while not (lock.exists() and "process " in lock.read_text()):
        assert time.monotonic() < limit, "the task never began"
        time.sleep(0.02)
    return lock.read_text()


def _wait(slurm: dict[str, str], ids: list[str]) -> dict[str, str]:
    """The last states of jobs and array tasks."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        query = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}", "--format=%i|%T"]
        lines = subprocess.run(query, env=slurm, capture_output=True, text=True, check=True).stdout.split()
        states = dict(line.split("|") for line in lines)
        if states and not set(states.values()) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}:
            return states
        time.sleep(0.5)
    raise AssertionError(f"jobs do not end: {states}")


def _results(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in snapshot(run).items() if not name.startswith("jobs/")}
