"""Runs that somebody else made: values of any kind in their JSON files, sealed as if they had been written so.

Seals find what was damaged, not what was meant. `VITP_FUZZ` multiplies the number of cases.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.making import make_project, make_run
from vitp_pipeline.cli.main import main
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.storage.sealed import read_sealed, write_sealed

TIMES = float(os.environ.get("VITP_FUZZ", "1"))
CASES = 25
ODD = [
    None,
    -1,
    0,
    7,
    2**31,
    10**30,
    1e308,
    float("nan"),
    "",
    "../../x",
    "a\0b",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    True,
    "0",
]
FILES = {
    "proposals": "proposals/run.json",
    "class_scores": "class_scores/*/run.json",
    "evaluation": "evaluation/*/run.json",
    "done": "*/*/shards/*/done.json",
    "result": "evaluation/*/result.json",
}
COMMANDS = {
    "report": ("report", "run", "--data-root", "data", "--recipe", "r.toml", "--out", "r.html"),
    "report without data": ("report", "run", "--out", "r.html"),
    "compare": ("compare", "other", "run", "--out", "c.html"),
    "status": ("status", "run"),
    "evaluate": ("evaluate", "r.toml", "--data-root", "data", "--out", "run", "--alpha", "0,1"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    project = make_project(folder, 2)
    for out in (folder / "run", folder / "other"):
        make_run(project, out, shards=2)
        result_of(project.evaluate(out, "0,1"))
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """Its own copy for each test: an `evaluate` that meets a forged identity may begin the evaluation anew."""
    return shutil.copytree(made, tmp_path / "world", symlinks=True)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a JSON document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def forged(content: dict[str, Any], path: tuple, value: Any, remove: bool) -> dict[str, Any]:
    content = copy.deepcopy(content)
    holder: Any = content
    for key in path[:-1]:
        holder = holder[key]
    if remove:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return content


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_any_value_anywhere_is_a_result_or_one_line(
    kind: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    rng = random.Random(kind)
    path = rng.choice(sorted((world / "run").glob(FILES[kind])))
    content = read_sealed(path)
    found = list(places(content))
    for case in range(round(CASES * TIMES)):
        where, value, remove = rng.choice(found), rng.choice(ODD), rng.random() < 0.15
        try:
            write_sealed(path, forged(content, where, value, remove))
        except ValueError:  # no JSON
            continue
        name = list(COMMANDS)[case % len(COMMANDS)]
        monkeypatch.setattr(sys, "argv", ["vitp", *COMMANDS[name]])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as error:
            raise AssertionError(f"{name}: {type(error).__name__} from {where} = {value!r}, {remove=}") from error
        said = capsys.readouterr().err
        assert code in {0, 2, 3, 4, 5, 6, 7} and "Traceback" not in said, (name, where, value, code, said)
        assert not code or said.splitlines()[-1].startswith("vitp: "), (name, where, value, said)
