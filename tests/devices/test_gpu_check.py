"""The script for a machine with a GPU, on the CPU and small."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import gpu_check, gpu_wheels
from tools.gpu_bench import Bench, relative, within
from tools.gpu_checks import CHECKS

ROOT = Path(__file__).parents[2]
SLOW = {"training-compiled": "compiles for minutes on two cores"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("cpu", tmp_path_factory.mktemp("bench"), small=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CHECKS if name not in SLOW])
def test_a_check_passes_on_the_cpu(name: str, bench: Bench) -> None:
    figures = CHECKS[name](bench)
    assert json.loads(json.dumps(figures)) is not None
    if name.startswith(("speed", "stage")):
        assert figures["images_per_second"] > 0 and figures["bare_images_per_second"] > 0
    if name.startswith(("forward", "classify", "operators", "out")):
        assert figures["limits"]


def test_a_figure_beyond_its_tolerance_fails() -> None:
    assert relative(np.array([1.0, -2.5]), np.array([1.0, -2.0])) == 0.25
    assert within({"logits": 0.1, "points": 0.99}, logits=0.2, points_least=0.9)["limits"]
    with pytest.raises(AssertionError, match=r"logits: 0\.3"):
        within({"logits": 0.3}, logits=0.2)
    with pytest.raises(AssertionError, match=r"points_least: 0\.8"):
        within({"points": 0.8}, points_least=0.9)
    with pytest.raises(AssertionError, match="logits"):
        within({"logits": float("nan")}, logits=0.2)
    with pytest.raises(AssertionError, match="finite"):
        relative(np.array([np.nan]), np.array([1.0]))


@pytest.mark.slow
def test_one_that_fails_is_written_and_the_others_go_on(tmp_path: Path) -> None:
    """The check of no such name raises in its process, as any other could."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "tools/gpu_check.py", "--device", "cpu", "--small", "--out", str(out)]
    done = subprocess.run([*command, "--only", "no-such-check", "nccl"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1, done.stderr
    assert "no-such-check: FAILED, KeyError" in done.stdout and "nccl: passed" in done.stdout
    results = json.loads(out.read_text())
    assert results["device"] == "cpu" and results["machine"]["torch"] and results["seconds"] > 0
    failed, passed = results["checks"]["no-such-check"], results["checks"]["nccl"]
    assert not failed["passed"] and "Traceback" in failed["traceback"]
    assert passed["passed"] and passed["figures"] == {"backend": "gloo"} and not passed["error"]
    lines = gpu_check.table(results).splitlines()
    assert any(line.startswith("| nccl | passed |") for line in lines)
    assert any(line.startswith("| no-such-check | failed |") and "KeyError" in line for line in lines)


def test_a_check_that_hangs_or_dies_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(device="cpu", small=True)

    def hangs(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert gpu_check.alone(options, tmp_path, "nccl", 3)["error"] == "not done after 3 s"
    died = subprocess.CompletedProcess([], -11, "some words\nthe last of them\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    found = gpu_check.alone(options, tmp_path, "nccl", 3)
    assert not found["passed"] and found["error"] == "exit code -11, the last of them"


def test_without_time_nothing_is_started(tmp_path: Path) -> None:
    options = argparse.Namespace(device="cpu", small=True, only=["nccl"], seconds=5.0, out=None)
    found = gpu_check.run_all(options, tmp_path)["checks"]["nccl"]
    assert not found["passed"] and found["error"] == "no time was left"


def test_the_table_shows_speed_beside_the_bare_model() -> None:
    figures = {"images_per_second": 123.456, "bare_images_per_second": 150.0, "ratio": 0.823, "megabytes": 7.0}
    checks = {"speed": {"passed": True, "figures": {**figures, "bare_megabytes": 6.0}, "error": ""}}
    text = gpu_check.table({"machine": {"gpu": "X"}, "device": "cuda", "seconds": 12.3, "checks": checks})
    assert "| speed | passed | 123.5 | 150 | 0.823 | 7 | 6 |  |" in text and "(gpu X)" in text


def test_wheels_are_what_vitp_needs_without_what_is_there() -> None:
    has = ["torch", "torchvision", "numpy", "timm"]
    names = gpu_wheels.needed(has, "3.12")
    assert {"zarr", "numcodecs", "pydantic", "pydantic-core", "pyarrow", "transformers"} <= set(names)
    assert not {"torch", "numpy", "timm", "opencv-python", "mmdet", "triton", "vitp-pipeline"} & set(names)
    assert not any(name.startswith("nvidia") for name in names)
    lock = (ROOT / "requirements.lock").read_text()
    for line in gpu_wheels.pinned(names, lock):
        name, _, version = line.partition("==")
        assert version == importlib.metadata.version(name) and line in lock.splitlines()
    with pytest.raises(SystemExit, match="no-such-package"):
        gpu_wheels.pinned(["no-such-package"], lock)


def test_wheels_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "wheels"

    def download(command: list[str], **_: object) -> None:
        assert "--only-binary=:all:" in command and command[command.index("--python-version") + 1] == "3.12"
        out.mkdir()
        (out / "zarr-3-py3-none-any.whl").write_bytes(bytes(100))

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(sys, "argv", ["gpu_wheels.py", "--python", "3.12", "--out", str(out)])
    gpu_wheels.main()
    monkeypatch.setattr(gpu_wheels, "LIMIT", 99)
    with pytest.raises(SystemExit, match="zarr-3"):
        gpu_wheels.main()
