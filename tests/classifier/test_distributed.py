"""Training by two processes, really started by torchrun, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import vitp_pipeline.runtime.distributed as distributed_module
from tests.classifier.making import TOY_MANIFEST
from tests.datasets import making
from vitp_pipeline.classifier.training.loop import Trainer
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import PartialError, UserError
from vitp_pipeline.runtime.distributed import ALONE, Distributed, launched_processes
from vitp_pipeline.stages.train_classifier import split_samples, train_classifier

RECIPE = """
manifest = "toy.toml"
[generate-proposals]
config = "x.py"
[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}'
image_size = [32, 48]
points_per_image = 16
device = "cpu"
hold_out = 3
warmup = 0.0
lr = 0.05
precision = "float32"
"""
TRAININGS = """
import contextlib, json, sys
from pathlib import Path
from vitp_pipeline.cli import app, main
from vitp_pipeline.errors import PartialError, UserError
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.stages.train_classifier import train_classifier
from vitp_pipeline.runtime.distributed import launched_processes

def trainings(**_):
    folder = Path(sys.argv[1])
    recipe = load_recipe(folder / "r.toml")
    with launched_processes() as group:
        for data, out, changes in json.loads(sys.argv[2]):
            with contextlib.suppress(PartialError):
                train_classifier(recipe, recipe.stage(TrainSettings, **changes), folder / data, folder / out, group)

app.app = trainings  # one start of two processes for all of them; errors end as in the command line
main.main()
"""
# A batch of all 6 images, so that every epoch is a step and its line in metrics.jsonl tells the step's loss. One image
# cannot be read: the processes have 3 and 2 images.
BY_STEP = {"epochs": 5, "batch_size": 6}
# Batches of 5 and 1 images: of the second, process 1 has none.
RESUMED = {
    "epochs": 3,
    "batch_size": 3,
    "accumulate": 2,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "class_prior": 1.0,
    "keep": "best",
    "hold_out": 2,
    "checkpoint_minutes": 1e-9,
}
LDA = {"fit": "lda", "norm": "none", "point_token": "sampled", "epochs": 2, "batch_size": 4}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path
    dataset = Dataset(making.write_semantic(folder / "data", 9), folder / "data", "train")
    making.truncate(split_samples(dataset.samples, 3)[0][2].image, 0.5)
    # of the other data process 1 alone meets an image that it cannot do without
    dataset = Dataset(making.write_semantic(folder / "bad", 9), folder / "bad", "train")
    making.truncate(split_samples(dataset.samples, 3)[1][1].image, 0.5)
    (folder / "toy.toml").write_text(TOY_MANIFEST)
    (folder / "r.toml").write_text(RECIPE)
    return folder


def torchrun(folder: Path, *program: str) -> tuple[int, list[str]]:
    """Two processes on this machine; the exit code and what each of them wrote on standard error."""
    logs = folder / "logs"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "--redirects", "3", "--log-dir", str(logs), *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    errors = sorted(logs.glob("*/attempt_0/*/stderr.log"), key=lambda p: p.parent.name)
    assert len(errors) == 2, done.stderr
    return done.returncode, [p.read_text() for p in errors]


def alone(folder: Path, out: str, changes: dict) -> Path:
    recipe = load_recipe(folder / "r.toml")
    with pytest.raises(PartialError):
        train_classifier(recipe, recipe.stage(TrainSettings, **changes), folder / "data", folder / out)
    return folder / out / "classifier/default"


def lines(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one: Path, two: Path) -> None:
    """Weights, figures and losses to 1e-5; the same files, the same confusions."""
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    for path in one.glob("*.safetensors"):
        a, b = (load_classifier(f / path.name).state_dict() for f in (one, two))
        assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-5, path.name
    done, other = (json.loads((folder / "done.json").read_bytes()) for folder in (one, two))
    assert done.keys() == other.keys() and done["files"].keys() == other["files"].keys()
    assert (done["images"], done["left_out"]) == (other["images"], other["left_out"])
    assert np.array_equal(np.load(one / "confusion.npy"), np.load(two / "confusion.npy"))
    assert len(lines(one)) == len(lines(two))
    for mine, theirs in zip(lines(one), lines(two), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_two_processes_train_what_one_does(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps of SGD; a training of all options begun by one process and ended by two; the LDA head; and one
    that fails in process 1, whose one line is all that is said of it.
    """
    jobs = {"steps": BY_STEP, "resumed": RESUMED, "lda": LDA}
    expected = {name: alone(place, f"{name}-1", changes) for name, changes in jobs.items()}
    losses = [x["loss"] for x in lines(expected["steps"])]
    assert len(losses) == 5 and len({round(x, 4) for x in losses}) == 5

    step = Trainer._step

    def stop(self, number, *rest):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        alone(place, "resumed-2", RESUMED)
    assert (place / "resumed-2/classifier/default/checkpoint.pt").exists()

    script = place / "trainings.py"
    script.write_text(TRAININGS)
    trainings = [("data", f"{n}-2", c) for n, c in jobs.items()] + [("bad", "bad-2", BY_STEP)]
    code, errors = torchrun(place, str(script), str(place), json.dumps(trainings))
    assert (place / "lda-2/classifier/default/done.json").exists(), errors
    for name, folder in expected.items():
        assert_equal(folder, place / f"{name}-2/classifier/default")

    assert code != 0
    told = errors[0].replace("vitp: stopped at once by SIGTERM", "")  # torchrun's, to the one that is left
    assert "Traceback" not in told and "vitp: " not in told
    assert errors[1].startswith("vitp: ") and errors[1].count("\n") == 1 and "cannot be read" in errors[1]


def test_a_single_process_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with launched_processes() as distributed:
        assert distributed == ALONE == Distributed(0, 1, 0) and distributed.is_main_process
    assert (
        distributed.share("a") == "a"
        and distributed.gather(3) == [3]
        and distributed.add(np.ones(2)).tolist() == [1, 1]
    )
    weight = torch.nn.Parameter(torch.ones(2))
    distributed.add_gradients([weight])
    assert weight.grad is None


@pytest.mark.parametrize(("address", "reason"), [("no-such-host.invalid", ""), ("127.0.0.1", "1/2 clients joined")])
def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch, address: str, reason: str) -> None:
    """A name that nobody knows is found out at once, a process that never comes in `START`."""
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(os.getpid()), "MASTER_ADDR": address}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed_module, "START", timedelta(seconds=1))
    with (
        pytest.raises(UserError, match=f"cannot reach the others at {address}:.*{reason}"),
        launched_processes(),
    ):
        pass
