"""Registries: what is found by name, what is said of other names, and whose code is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.conftest import write_package
from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.errors import UsageError
from vitp_pipeline.validation.registry import Registry

ADDING = "from vitp_pipeline.config.choices import FORMULAS\nFORMULAS.add('mine', print)\n"


def test_members_are_found_by_name_in_the_order_of_names() -> None:
    shapes: Registry[int] = Registry("shape")
    assert shapes.register("triangle")(3) == 3
    assert shapes.add("square", 4) == 4
    assert (list(shapes), len(shapes), str(shapes)) == (["square", "triangle"], 2, "square, triangle")
    assert "square" in shapes and "circle" not in shapes and 4 not in shapes
    assert shapes["triangle"] == 3
    with pytest.raises(UsageError, match="two plugins add the shape 'square'"):
        shapes.add("square", 5)


@pytest.mark.parametrize(
    "name, said",
    [
        ("squar", "Did you mean 'square'?"),
        ("triangel", "Did you mean 'triangle'?"),
        ("SQUARE", "Known are: square, triangle"),
        ("", "Known are: square, triangle"),
        ("…", "Known are: square, triangle"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, said: str) -> None:
    shapes: Registry[int] = Registry("shape")
    shapes.add("square", 4)
    shapes.add("triangle", 3)
    with pytest.raises(UsageError) as error:
        shapes[name]
    assert str(error.value) == f"no shape {name!r}. {said}"


def test_a_plugin_is_imported_once(install, capsys) -> None:
    install(f"{ADDING}print('imported')")
    assert "mine" in FORMULAS
    assert list(FORMULAS).count("mine") == 1
    assert capsys.readouterr().out == "imported\n"


@pytest.mark.parametrize("code", ["import nothing_of_this_name", "1 / 0", "def", ADDING + ADDING])
def test_a_plugin_that_cannot_be_imported_is_named(install, code: str) -> None:
    install(code)
    for _ in range(2):  # not only at the first look
        with pytest.raises(UsageError, match=r"plugin 'mine' of somebody_elses cannot be imported .*pip uninstall"):
            list(FORMULAS)


@pytest.mark.parametrize("installed", [True, False])
def test_code_of_the_current_folder_is_not_run(tmp_path: Path, installed: bool) -> None:
    """`python -m` puts it on the path; a folder of data could pass for a package."""
    write_package(tmp_path / "data", "theirs", "print('run')")
    paths = {"PYTHONPATH": str(tmp_path / "data")} if installed else {}
    command = [sys.executable, "-m", "vitp_pipeline.cli.main", "evaluate", "--help"]
    where = tmp_path if installed else tmp_path / "data"
    done = subprocess.run(command, cwd=where, env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0 and ("run\n" in done.stdout) == installed, done.stderr
