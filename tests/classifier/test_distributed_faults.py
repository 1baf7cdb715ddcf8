"""Trainings whose number of processes changes, and of which a process is told to stop or dies.

The processes are started by hand with what srun gives them, so that nothing but vitp itself ends the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.classifier.making import TOY_MANIFEST
from tests.classifier.test_distributed import RECIPE, assert_equal
from tests.datasets import making
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.data import PointBatches
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.runtime.distributed import Distributed
from vitp_pipeline.runtime.launcher import FIRST_PORT, PORTS

pytestmark = pytest.mark.xdist_group("distributed")  # its trainings are made once
SETTINGS = """
hold_out = 2
epochs = 4
batch_size = 3
accumulate = 2
optimizer = "adamw"
weight_decay = 0.1
class_prior = 1.0
checkpoint_minutes = 1e-9
"""
STEPS = 8
"""Of a whole training: 4 epochs of 7 images, in steps of 6 and 1. In every second one process 1 has no image."""
BOUND = 60
"""Seconds within which the others end after one has died; it takes far less than one."""


@dataclass(frozen=True)
class Fault:
    """A signal that one process sends itself when it comes to a step."""

    rank: int
    step: int
    number: int


def _train(folder: Path, out: str, launch: dict[str, str], log: Path, fault: Fault | None) -> None:
    """The command, as its own process; what it says goes to `log`."""
    import torch

    from vitp_pipeline.classifier.training.loop import Trainer
    from vitp_pipeline.cli.main import main

    torch.set_num_threads(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(launch)
    step = Trainer._step

    def faulty(self: Trainer, number: int, *rest: object) -> float | None:
        if fault and (self.distributed.rank, number) == (fault.rank, fault.step):
            os.kill(os.getpid(), fault.number)
        return step(self, number, *rest)

    Trainer._step = faulty
    sys.argv = ["vitp", "train-classifier", str(folder / "r.toml")]
    sys.argv += ["--data-root", str(folder / "data"), "--out", str(folder / out)]
    main()


Run = Callable[..., list[tuple[int, str]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    making.write_semantic(folder / "data", 9)
    (folder / "toy.toml").write_text(TOY_MANIFEST)
    (folder / "r.toml").write_text(RECIPE.replace("hold_out = 3", "").replace("lr = 0.05", "lr = 1e-3") + SETTINGS)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitp_pipeline.classifier.training.loop", "vitp_pipeline.stages.train_classifier"])

    def start(out: str, size: int, fault: Fault | None = None) -> list[tuple[int, str]]:
        """Exit code and standard error of each process."""
        step = {
            "SLURM_JOB_ID": str(free_port() - FIRST_PORT),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(size),
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_NODELIST": "node1",
        }
        logs = [place / f"{out}-{rank}.log" for rank in range(size)]
        processes = [
            context.Process(
                target=_train,
                args=(place, out, {**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}, log, fault),
            )
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        if fault and fault.number == signal.SIGKILL:
            processes[fault.rank].join(120)
            began = time.monotonic()
        for process in processes:
            process.join(120)
        if fault and fault.number == signal.SIGKILL:
            assert time.monotonic() - began < BOUND
        try:
            return [(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)]
        finally:
            for process in processes:
                process.kill()

    return start


def free_port() -> int:
    """One of those that srun's processes may be given."""
    for port in np.random.default_rng().integers(FIRST_PORT, FIRST_PORT + PORTS, 100).tolist():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


@pytest.fixture(scope="module")
def whole(place: Path, run: Run) -> dict[int, Path]:
    """Uninterrupted trainings, by the number of processes."""
    for size in (1, 2):
        assert [code for code, _ in run(f"whole-{size}", size)] == [0] * size
    return {size: place / f"whole-{size}/classifier/default" for size in (1, 2)}


def saved_step(folder: Path) -> int:
    import torch

    return torch.load(folder / "checkpoint.pt", weights_only=True)["step"]


def contents(folder: Path) -> dict[str, bytes]:
    """What must not differ by a byte; run.json has dates."""
    return {
        p.name: p.read_bytes()
        for p in folder.iterdir()
        if p.is_file() and p.name not in ("run.json", "copies.json", "lock")
    }


@pytest.mark.slow
@pytest.mark.kill
def test_one_two_one_process(place: Path, run: Run, whole: dict[int, Path]) -> None:
    """To 1e-5 what one process makes without a stop; one of the two is told to end, both save and end with 75."""
    folder = place / "changing/classifier/default"
    ((code, said),) = run("changing", 1, Fault(0, 1, signal.SIGTERM))
    assert code == 75 and saved_step(folder) == 2, said
    ends = run("changing", 2, Fault(1, 4, signal.SIGTERM))
    assert [code for code, _ in ends] == [75, 75] and saved_step(folder) == 5, ends
    assert f"5 of {STEPS} steps are done and saved" in ends[0][1] and ends[1][1].count("\n") == 1  # one tells it
    ((code, said),) = run("changing", 1)
    assert code == 0, said
    assert_equal(whole[1], folder)
    assert_equal(whole[1], whole[2])


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others(rank: int, place: Path, run: Run, whole: dict[int, Path]) -> None:
    """Process 0, through which they have met, or another; the same number of them then ends with the same bytes."""
    folder = place / f"killed-{rank}/classifier/default"
    ends = run(f"killed-{rank}", 2, Fault(rank, 5, signal.SIGKILL))
    (code, said) = ends[1 - rank]
    assert ends[rank][0] == -signal.SIGKILL and code == 1
    assert (
        f"vitp: training: process {1 - rank} lost the connection to another process" in said and "Traceback" not in said
    ), said
    assert saved_step(folder) == 5
    assert [code for code, _ in run(f"killed-{rank}", 2)] == [0, 0]
    assert contents(folder) == contents(whole[2])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_data_and_their_order_are_the_same_for_any_number_of_processes(place: Path, size: int) -> None:
    """Bit for bit: each step's images, points and classes, put together by rank."""
    dataset = Dataset(load_recipe(place / "r.toml").manifest, place / "data", "train")
    source = (dataset, dataset.samples, (32, 48), 16, 4, Augmentation(flip=0.5, crop_scale=(0.5, 1.0)))
    one = dict(PointBatches(*source).from_step(0, 6))
    shares = [
        dict(PointBatches(*source, distributed=Distributed(rank, size, rank)).from_step(0, 6)) for rank in range(size)
    ]
    for step, batch in one.items():
        parts = [share[step] for share in shares if share[step] is not None]
        for column in ("images", "points", "classes"):
            joined = np.concatenate([getattr(part, column).numpy() for part in parts])
            assert np.array_equal(joined, getattr(batch, column).numpy())
