"""Ray and Snakemake run the shards of a small run, are killed in the middle, and end with the bytes of one process.

Both come from an environment of their own (`make engines`), as on a cluster: they only start `vitp`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project, snapshot

ROOT = Path(__file__).parents[2]
OWN = Path(os.environ.get("VITP_ENGINES", ROOT / ".venv-engines")) / "bin"


def engine(program: str, package: str) -> str:
    """Returns a program of the environment of engines, or of this one; skips the test without."""
    if any(OWN.parent.glob(f"lib/python*/site-packages/{package}")):
        return str(OWN / program)
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make engines")
    return sys.executable if program == "python" else str(Path(sys.executable).with_name(program))


def environment(tmp_path: Path) -> dict[str, str]:
    """With `vitp` of this tree on the PATH, one thread, and no PYTHONPATH that an engine's own Python would see."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "vitp"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m vitp_pipeline.cli.main "$@"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**known, "PATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}


def run_until(words: list[str], environment: dict[str, str], folder: Path, pattern: str) -> bool:
    """Starts a program, and kills all that it started when a file is there; whether it was still at work."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(words, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and not any(folder.glob(pattern)):
            time.sleep(0.02)
        killed = process.poll() is None
        _kill(process.pid)
        process.wait()
    return killed


def _kill(leader: int) -> None:
    """Kills the descendants of a process, which may have left its group, and itself."""
    found, waiting = [leader], [leader]
    while waiting:
        for thread in Path(f"/proc/{waiting.pop()}/task").glob("*"):
            with contextlib.suppress(OSError):
                children = [int(child) for child in (thread / "children").read_text().split()]
                found += children
                waiting += children
    for process in reversed(found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def finish(words: list[str], environment: dict[str, str], folder: Path) -> None:
    with (folder / "log").open("ab") as log:
        code = subprocess.run(words, env=environment, cwd=folder, stdout=log, stderr=log, timeout=400).returncode
    assert code == 0, (folder / "log").read_text(errors="replace")[-3000:]


@pytest.fixture(scope="module")
def expected(project: Project, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of two shards that one process makes, one after the other, as far as classify."""
    out = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(finished / "classifier", out / "classifier")
    for stage in ("generate-proposals", "classify"):
        for shard in ("0/2", "1/2"):
            project.run(stage, out, shard)
    return snapshot(out)


def compare(run: Path, expected: dict[str, bytes]) -> None:
    made = snapshot(run)
    assert {name: made.get(name) for name in expected} == expected
    assert {name.split("/")[0] for name in made.keys() - expected.keys()} <= {"evaluation", "jobs"}
    assert any(run.glob("evaluation/*/result.json"))


@pytest.mark.kill
@pytest.mark.slow
def test_ray(project: Project, expected, tmp_path: Path) -> None:
    python, out, known = engine("python", "ray"), tmp_path / "run", environment(tmp_path)
    words = [python, str(ROOT / "stages/cluster/ray_shards.py"), "2", str(project.recipe)]
    words += ["--data-root", str(project.data), "--out", str(out)]
    assert run_until(words, known, tmp_path, "run/proposals/shards/*/part-*.parquet")
    assert not any(out.glob("evaluation/*/result.json"))
    finish(words, known, tmp_path)
    compare(out, expected)


@pytest.mark.kill
@pytest.mark.slow
def test_snakemake(project: Project, expected, tmp_path: Path) -> None:
    program, out, known = engine("snakemake", "snakemake"), tmp_path / "run", environment(tmp_path)
    words = [program, "-s", str(ROOT / "stages/cluster/Snakefile"), "--cores", "2", "--rerun-incomplete"]
    settings = [f"recipe={project.recipe}", f"data={project.data}", f"out={out}", "shards=2"]
    words += ["--rerun-triggers", "mtime", "--config", *settings]
    assert run_until(words, known, tmp_path, "run/proposals/shards/*/part-*.parquet")
    assert not (out / "jobs/figures.json").exists()
    finish([*words[:3], "--unlock", *words[-5:]], known, tmp_path)
    finish(words, known, tmp_path)
    compare(out, expected)
    assert (out / "jobs/figures.json").exists()
