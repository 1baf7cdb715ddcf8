"""The commands of README and docs on the demo are run as a reader runs them: in a clone with nothing beside it.

They run in the order of the pages, without stand-ins; only the demo's scenes are few, unless VITP_FULL_DEMO is set.
What needs a download, a GPU or a reader's data is in `READ_ALONE` of test_commands.py, or runs there on stand-ins.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, commands
from vitp_pipeline.demo.scenes import draw_scenes

WALK = """
import json, sys, traceback

import vitp_pipeline
from vitp_pipeline.cli import main as cli
from vitp_pipeline.demo import run

if json.loads(sys.argv[1]):
    run.TRAIN_SCENES, run.VAL_SCENES = 8, 4
codes = []
for line in json.loads(sys.stdin.read()):
    print("$", *line, file=sys.stderr)
    sys.argv, code = line, 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except Exception:
        traceback.print_exc()
        code = 1
    codes.append(code)
print("\\n" + json.dumps([vitp_pipeline.__file__, codes]))
"""
FIRST = ("README.md", "docs/first-ten-minutes.md")
"""Pages that are walked first; they make the run of the demo."""


def walk() -> list[tuple[str, ...]]:
    """Commands of vitp that name nothing but the demo, each once; first what `make demo` does after installing."""
    found = [("vitp", "demo")]
    for page in (*FIRST, *(page for page in PAGES if page not in FIRST)):
        for command in commands(page):
            of_the_demo = any(word == "demo" or word.startswith("runs/demo") for word in command.words)
            if command.words[:1] == ("vitp",) and of_the_demo:
                found.append(command.words)
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git tracks, in an empty folder, and a folder of two photographs of the reader's."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone: git lists no files")
    folder = tmp_path_factory.mktemp("clean") / "vitp"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    draw_scenes(folder.parent, "val", 2, seed=1)
    shutil.copytree(folder.parent / "images/val", folder / "photos")
    return folder


@pytest.mark.slow
def test_the_demo_s_commands_run_in_a_clean_clone(clone: Path) -> None:
    small = not os.environ.get("VITP_FULL_DEMO")
    if small:
        recipe = (clone / "stages/demo.toml").read_text(encoding="utf-8")
        assert "epochs = 5" in recipe
        (clone / "stages/demo.toml").write_text(recipe.replace("epochs = 5", "epochs = 1"), encoding="utf-8")
    lines = walk()
    assert len(lines) > 5
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VITP_")}
    done = subprocess.run(
        [sys.executable, "-c", WALK, json.dumps(small)],
        input=json.dumps(lines),
        cwd=clone,
        env={**environment, "PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    module, codes = json.loads(done.stdout.splitlines()[-1])
    assert Path(module).is_relative_to(clone)
    failed = [" ".join(line) for line, code in zip(lines, codes, strict=True) if code]
    assert not failed, done.stderr
