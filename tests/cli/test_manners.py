"""How the program behaves on a terminal, in a pipe, and for machines."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.test_cli import COMMANDS
from tests.local_runs import create_or_check
from vitp_pipeline.cli import main as cli
from vitp_pipeline.cli.app import app
from vitp_pipeline.cli.document import documented
from vitp_pipeline.errors import PartialError, UsageError
from vitp_pipeline.runtime import progress as progress_module

ROOT = Path(__file__).parents[2]
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|4[0-7]|9[0-7])(?:;\d+)*m")
TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}

SHOWS_PROGRESS = """
import sys, time, types
cuda = types.SimpleNamespace(is_initialized=lambda: True, mem_get_info=lambda: (5_000_000_000, 8_000_000_000))
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
from vitp_pipeline.runtime.progress import progress, say
with progress("work", 4) as bar:
    for _ in range(4):
        time.sleep(0.12)
        bar.advance()
    say("a remark")
"""


@dataclass
class Gained:
    folder: Path
    failed: list[tuple[str, str]]


def on_terminal(code: list[str], **environment: str) -> str:
    """What a program shows whose standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, *code], stdout=theirs, stderr=theirs, cwd=ROOT, env={**clean, **TERMINAL, **environment}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_a_terminal_shows_rate_time_left_and_memory_in_color() -> None:
    shown = on_terminal(["-c", SHOWS_PROGRESS])
    rates = [float(rate) for rate in re.findall(r"([\d.]+) images/s", shown)]
    assert rates and 2 < rates[-1] < 8.5  # four in at least 0.48 seconds
    assert re.search(r"\d/4", shown) and re.search(r"\d:\d\d:\d\d", shown)
    assert "3.0 of 8.0 GB" in shown and "a remark" in shown
    assert COLOR.search(shown)


def test_no_color_is_obeyed() -> None:
    shown = on_terminal(["-c", SHOWS_PROGRESS], NO_COLOR="1")
    assert "images/s" in shown and not COLOR.search(shown)
    help_of = ["-m", "vitp_pipeline.cli.main", "status", "--help"]
    assert COLOR.search(on_terminal(help_of)) and not COLOR.search(on_terminal(help_of, NO_COLOR="1"))


def test_a_pipe_gets_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", SHOWS_PROGRESS], capture_output=True, text=True, cwd=ROOT)
    first, second = done.stderr.splitlines()
    assert re.fullmatch(r"work: 4/4 images, [\d.]+/s, 0 s left, 3\.0 of 8\.0 GB", first) and second == "a remark"
    command = [sys.executable, "-m", "vitp_pipeline.cli.main"]
    for arguments in (["generators"], ["--help"], ["evaluate", "--help"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and done.stdout and "\x1b" not in done.stdout + done.stderr


def test_quiet_leaves_results_and_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    create_or_check(run / "proposals", {"stage": "proposals"})
    monkeypatch.setattr(progress_module, "_hushed", False)
    for word, remarks in (("--quiet", 0), ("-q", 0), (None, 1)):
        monkeypatch.setattr(sys, "argv", ["vitp", "gc", str(run), "--dry-run", *([word] if word else [])])
        cli.main()
        assert capsys.readouterr().err.count("\n") == remarks
    monkeypatch.setattr(sys, "argv", ["vitp", "evaluate", "camvit", "--data-root", "x", "--out", "y", "--quiet"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "camvit" in capsys.readouterr().err


@pytest.mark.parametrize("command", (*COMMANDS, "generators"))
def test_every_command_can_be_quiet(command: str) -> None:
    assert "--quiet" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


@pytest.mark.parametrize("command", (*COMMANDS, "generators"))
def test_every_command_speaks_json(command: str) -> None:
    assert "--json" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


def test_a_document_is_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with documented(True) as document:
        print("a library's greeting")
        document.give(Gained(Path("runs/a"), [("b", "torn")]), more=1)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"folder": "runs/a", "failed": [["b", "torn"]], "more": 1}
    assert err == "a library's greeting\n"
    with documented(False) as document:
        print("for people")
        document.give(more=1)
    assert capsys.readouterr().out == "for people\n"


def test_a_document_of_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """Images that failed are in it; a command that came to nothing, or was stopped, has none."""
    with pytest.raises(PartialError), documented(True) as document:
        document.give(made=3)
        raise PartialError("one failed")
    assert json.loads(capsys.readouterr().out) == {"made": 3}
    with pytest.raises(UsageError), documented(True):
        raise UsageError("no such stage")
    with pytest.raises(KeyboardInterrupt), documented(True) as document:
        document.give(made=3)
        raise KeyboardInterrupt
    assert capsys.readouterr().out == ""


def test_doctor_speaks_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vitp", "doctor", "--json"])
    cli.main()
    assert {"python", "torch", "cores"} <= set(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("line", "word", "found"), [("vitp import", 1, "import-proposals"), ("vitp classify cam", 2, "camvid")]
)
def test_a_shell_completes_commands_and_recipes(line: str, word: int, found: str) -> None:
    program = "import sys; sys.argv = ['vitp']; from vitp_pipeline.cli.main import main; main()"
    asked = {"_VITP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **asked}
    )
    assert found in done.stdout.split()
