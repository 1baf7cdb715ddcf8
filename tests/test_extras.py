"""What each extra of pyproject.toml brings, and what vitp says where it is not installed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vitp_pipeline.demo.scenes import draw_scenes

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    "hf": ("transformers",),
    "openmmlab": ("mmengine", "mmcv", "mmseg", "mmdet", "ftfy", "regex"),
    "report": ("plotly", "jinja2", "matplotlib"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "s3": ("s3fs",),
}
"""Extras for users, with the modules that they bring."""

WITHOUT = """
import sys

class Blocked:
    names = set(sys.argv[1].split(","))

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Blocked())
import importlib.util

find_spec = importlib.util.find_spec

def without_blocked(name, package=None):
    return None if name.partition(".")[0] in Blocked.names else find_spec(name, package)

importlib.util.find_spec = without_blocked
sys.argv = ["vitp", *sys.argv[2:]]
from vitp_pipeline.cli.main import main

main()
"""
"""A program that is `vitp` where some modules are not installed."""


def names(requirements: list[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}


def vitp_without(modules: tuple[str, ...], *words: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of vitp where modules are not installed."""
    command = [sys.executable, "-c", WITHOUT, ",".join(modules), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def lay_transformers_run(folder: Path) -> None:
    """Put two drawn scenes, an untrained Mask2Former's config for transformers, and a recipe that names both."""
    draw_scenes(folder / "scenes", "val", 2, seed=0)
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "mask2former"}', encoding="utf-8")
    recipe = 'manifest = "demo"\n[generate-proposals]\nconfig = "model"\ncheckpoint = "random"\n'
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    (folder / "x.pth").touch()


def test_the_base_brings_no_mmcv() -> None:
    """An mmcv that is there stays: both mmcv-lite and mmcv are the module `mmcv`."""
    base = names(PROJECT["dependencies"])
    assert not base & {"mmcv", "mmcv-lite", "onedl-mmcv", "mmengine", "mmsegmentation", "mmdet", "setuptools"}
    holders = {name for name, lines in PROJECT["optional-dependencies"].items() if "mmcv-lite" in names(lines)}
    assert holders == {"openmmlab"}


def test_beside_a_full_mmcv_no_other_is_pulled_in() -> None:
    """By the lists of the installed distributions, followed to the end; the line is that of docs/install.md."""
    line = "pip install mmengine mmsegmentation mmdet ftfy regex"
    assert line in (ROOT / "docs/install.md").read_text(encoding="utf-8")
    waiting = [*map(Requirement, PROJECT["dependencies"]), *map(Requirement, line.split()[2:])]
    waiting += [Requirement(line) for extra in ("hf", "report") for line in PROJECT["optional-dependencies"][extra]]
    brought = set[tuple[str, str]]()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (one := (canonicalize_name(wanted.name), extra)) not in brought:
                brought.add(one)
                with contextlib.suppress(PackageNotFoundError):  # of another platform
                    lines = map(Requirement, requires(wanted.name) or [])
                    waiting += [next_ for next_ in lines if not next_.marker or next_.marker.evaluate({"extra": extra})]
    found = {name for name, _ in brought}
    assert {"mmengine", "mmdet", "torch", "transformers", "numpy"} <= found
    assert not found & {"mmcv", "mmcv-lite", "onedl-mmcv"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_the_modules(extra: str) -> None:
    """By the installed distributions' own lists of what they import."""
    brought = {name.lower() for name in names(PROJECT["optional-dependencies"][extra])}
    imported = packages_distributions()
    assert {module for module in EXTRAS[extra] if brought & {name.lower() for name in imported[module]}} == {
        *EXTRAS[extra]
    }
    assert extra in PROJECT["optional-dependencies"]["test"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("hf", ("import-checkpoint", "x.pth", "--as", "mask2former-d2", "--out", "x")),
        ("hf", ("generate-proposals", "recipe.toml", "--data-root", "scenes", "--out", "run")),
        ("openmmlab", ("demo", "--out", "out")),
        ("report", ("report", "run")),
        ("s3", ("status", "s3://bucket/run")),
    ],
    ids=["import-checkpoint", "transformers", "demo", "report", "s3"],
)
def test_a_command_says_which_extra_it_lacks(extra: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """In one line, and before it has written anything."""
    lay_transformers_run(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    code, said = vitp_without(EXTRAS[extra], *words, folder=tmp_path)
    assert code in (1, 2), said
    assert f"vitp-pipeline[{extra}]" in said.splitlines()[-1] and "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} == before
