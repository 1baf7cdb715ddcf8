"""How the program's process ends: told to by a signal at any moment of its life, and after its work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project, snapshot

ROOT = Path(__file__).parents[2]
EXITS = int(os.environ.get("VITP_EXITS", "2"))
"""How often each command is run to its end."""

AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == {moment!r}:
            {then}
sys.meta_path.insert(0, Finder())
from vitp_pipeline.runtime import signals
signals.PATIENCE = 0.5
from vitp_pipeline.cli.main import main
main()
"""
"""Something happens when a module is imported."""
SIGNALED = "os.kill(os.getpid(), {number})"
STUCK = """import hashlib, threading
            threading.Timer(0.2, os.kill, (os.getpid(), {number})).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)"""
"""In a library, which does not look at signals."""
SWALLOWED = """import time
            try:
                os.kill(os.getpid(), {number})
            except BaseException:
                time.sleep(60)"""


def ends(program: str, *words: object) -> tuple[int, str]:
    """(exit code, the last line on standard error) of a program that shows no traceback."""
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert "Traceback" not in done.stderr and done.stdout == "", done.stderr
    return done.returncode, done.stderr.splitlines()[-1] if done.stderr else ""


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("moment", ["vitp_pipeline.cli.app", "typer", "vitp_pipeline.cli.commands", "tomllib"])
def test_a_signal_while_the_command_line_is_built(moment: str, number: int, tmp_path: Path) -> None:
    program = AT_IMPORT.format(moment=moment, then=SIGNALED.format(number=int(number)))
    code, said = ends(program, "classify", "camvid", "--data-root", tmp_path, "--out", tmp_path)
    assert code == (130 if number == signal.SIGINT else 75)
    assert said.startswith("vitp: stopped at once by") and "run the same command again" in said


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize(
    ("number", "moment", "then"),
    [
        (signal.SIGTERM, "mmseg.models", SIGNALED),
        (signal.SIGINT, "mmengine", SIGNALED),
        (signal.SIGTERM, "tomllib", STUCK),
        (signal.SIGINT, "tomllib", STUCK),
        (signal.SIGTERM, "tomllib", SWALLOWED),
        (signal.SIGINT, "tomllib", SWALLOWED),
    ],
)
def test_a_signal_while_something_loads(number: int, moment: str, then: str, project: Project, tmp_path: Path) -> None:
    began = time.monotonic()
    stage = ["generate-proposals", project.recipe, "--data-root", project.data, "--out", tmp_path / "run"]
    code, said = ends(AT_IMPORT.format(moment=moment, then=then.format(number=int(number))), *stage)
    assert code == (130 if number == signal.SIGINT else 75) and said.startswith("vitp: ")
    assert time.monotonic() - began < 60 and not list(tmp_path.rglob("part-*"))


SIGNALS_AT_ITS_END = """
import atexit, os, sys
def every(*_):
    for number in (15, 10, 12, 2):
        os.kill(os.getpid(), number)
atexit.register(every)
class Last:
    def __del__(self, every=every):
        every()
sys.last = Last()
from vitp_pipeline.cli import main
told = main._with_output
main._with_output = lambda code: (every(), told(code))[1]
if {first}:
    os.kill = (lambda kill: lambda pid, number: kill(pid, number))(os.kill)
    class Finder:
        def find_spec(self, name, *rest):
            if name == "tomllib":
                os.kill(os.getpid(), {first})
    sys.meta_path.insert(0, Finder())
main.main()
"""
"""Signals after the outcome is decided: before the last line, among the functions for the end, and after them."""


@pytest.mark.kill
@pytest.mark.parametrize(
    ("words", "first", "code"),
    [
        (["gc", "RUN", "--quiet"], 0, 0),
        (["classify", "camvid", "--data-root", "x", "--out", "y"], 15, 75),
        (["classify", "camvid", "--data-root", "x", "--out", "y"], 2, 130),
        (["gc", "absent"], 0, 3),
        (["gc"], 0, 2),
    ],
)
def test_no_signal_changes_how_it_ended(words: list[str], first: int, code: int, finished: Path) -> None:
    words = [word.replace("RUN", str(finished)) for word in words]
    assert ends(SIGNALS_AT_ITS_END.format(first=first), *words)[0] == code


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize(
    "words",
    [
        ["verify", "RUN", "--quiet"],
        ["export-results", "RECIPE", "--data-root", "DATA", "--out", "RUN", "--format", "coco-panoptic", "--quiet"],
    ],
)
def test_a_process_ends_as_its_work_did(words: list[str], project: Project, copied: Path) -> None:
    """Time after time: threads that outlive the interpreter abort it once in a while."""
    places = {"RUN": copied, "DATA": project.data, "RECIPE": project.recipe}
    program = "from vitp_pipeline.cli.main import main; main()"
    for _ in range(EXITS):
        assert ends(program, *(places.get(word, word) for word in words))[0] == 0


@pytest.mark.kill
def test_a_stage_does_not_need_its_log(project: Project, copied: Path, finished: Path) -> None:
    shutil.rmtree(copied / "evaluation")
    words = ["evaluate", project.recipe, "--data-root", project.data, "--out", copied, "--alpha", "0,0.4,1"]
    command = [sys.executable, "-m", "vitp_pipeline.cli.main", *map(str, words)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=full, cwd=ROOT)
    assert done.returncode == 74 and snapshot(copied) == snapshot(finished)
