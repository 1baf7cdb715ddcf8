"""Output that cannot be written costs nothing but itself: the work goes on, and the exit code says it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.disks import disk_of
from tests.local_runs import create_or_check
from vitp_pipeline.runtime import output, tables

NASTY = "[/red] [bold]x[/] :smile:\x1b[2J\n\u202e\udcff"


@contextmanager
def full(folder: Path) -> Iterator[int]:
    with Path("/dev/full").open("wb", buffering=0) as file:
        yield file.fileno()


@contextmanager
def reader_gone(folder: Path) -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def read_only(folder: Path) -> Iterator[int]:
    (folder / "log").touch()
    with (folder / "log").open("rb") as file:
        yield file.fileno()


@contextmanager
def disk_full(folder: Path) -> Iterator[int]:
    with disk_of("16k", folder / "disk") as disk, (disk / "log").open("wb") as file:
        yield file.fileno()


BROKEN: list[Callable] = [full, reader_gone, read_only, disk_full]


@contextmanager
def standard(number: int, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has a guarded stream on a descriptor in place of a standard stream."""
    monkeypatch.setattr(output, "lost", {})
    monkeypatch.setitem(output._STREAMS, descriptor, output._STREAMS[number])
    monkeypatch.setattr(sys, "stdout" if number == 1 else "stderr", output._Guarded(descriptor))
    yield


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("broken", BROKEN)
def test_nothing_that_prints_fails(broken, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with broken(tmp_path) as descriptor, standard(number, descriptor, monkeypatch):
        for _ in range(100):
            output.show("a line " * 50)
            output.tell("a line " * 50)
        output.show_json({"a": list(range(10_000))})
        table = tables.Table("a title")
        table.column("a")
        table.row("b")
        table.show()
        print("a library's words", file=sys.stdout if number == 1 else sys.stderr)
        output.flush()
        assert list(output.lost) == [output._STREAMS[number]] and output.lost.popitem()[1]


def test_a_slow_reader_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pipe that does not block, too, as some terminals and supervisors leave it."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    received = []

    def read() -> None:
        time.sleep(0.1)
        while piece := os.read(reader, 65536):
            received.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    with standard(1, writer, monkeypatch):
        for n in range(5000):
            output.show(f"line {n} " + "x" * 80)
        output.flush()
        assert output.lost == {}
    os.close(writer)
    thread.join()
    os.close(reader)
    lines = b"".join(received).decode().splitlines()
    assert len(lines) == 5000 and lines[4999].startswith("line 4999 ")


def test_names_are_shown_and_do_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "[/red] [bold]x[/] :smile:\\x1b[2J\\n\\u202e\\udcff"
    monkeypatch.setenv("COLUMNS", "200")
    table = tables.Table(NASTY, NASTY)
    table.column(NASTY)
    table.row(NASTY)
    table.row([NASTY, NASTY])
    table.show()
    assert capsys.readouterr().out.count(shown) == 6
    output.show(NASTY)
    output.show_lines(f"a\n{NASTY}")
    output.tell(NASTY)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == err.strip() == shown and out.count("\n") == 3


def test_a_url_stands_for_its_scratch_folder(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(output, "_aliases", {})
    output.alias("/tmp/vitp-run-x/a", 's3://bucket/"a"')
    output.show("/tmp/vitp-run-x/a/log: lost")
    output.show_json({"folder": "/tmp/vitp-run-x/a"})
    assert capsys.readouterr().out == 's3://bucket/"a"/log: lost\n{"folder": "s3://bucket/\\"a\\""}\n'


VITP = [sys.executable, "-m", "vitp_pipeline.cli.main"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    create_or_check(folder / "proposals", {"stage": "proposals"}, ("a",))
    return folder


@pytest.mark.parametrize(
    ("command", "redirected", "code", "said"),
    [
        ("status", ">/dev/full", 74, "standard output (No space left on device)"),
        ("status", ">&-", 74, "standard output (Bad file descriptor)"),
        ("status", "| true; exit ${PIPESTATUS[0]}", 74, "standard output (Broken pipe)"),
        ("status --json", ">/dev/full", 74, "standard output (No space left on device)"),
        ("--help", ">/dev/full", 74, "standard output (No space left on device)"),
        ("gc", "2>/dev/full", 74, ""),
        ("gc", "2>&-", 74, ""),
        ("gc", ">&- 2>&-", 74, ""),
        ("gc --quiet", ">&- 2>&- <&-", 0, ""),
        ("gc --quiet", ">/dev/full 2>/dev/full", 0, ""),
        ("status absent", "2>/dev/full", 2, ""),
        ("status absent --json", ">&-", 2, "vitp: "),
    ],
)
def test_the_exit_code_says_what_was_not_printed(
    command: str, redirected: str, code: int, said: str, run: Path
) -> None:
    name, _, rest = command.partition(" ")
    words = command if name.startswith("-") else f"{name} {run} {rest}"
    line = f"{' '.join(VITP)} {words} {redirected}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
