"""Whatever file of a finished run is damaged in whatever way, no command gives another result without a word.

A case is a file and a kind of damage. Every command after it, each on a run damaged anew, must do what it does on the
whole run or end with one line and a code that says why; `vitp verify` must name the file; and after `verify --repair`
and a rerun the run must hold the bytes that it held.

`VITP_DAMAGE` is the number of cases, in place of the sample; `VITP_DAMAGE_PIECE=I/N` takes a piece of them,
`VITP_DAMAGE_FILES` those of files whose names fit a pattern.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenarios import Place, make_place, perform, words
from vitp_pipeline.cli.main import main
from vitp_pipeline.runtime import output
from vitp_pipeline.runtime.signals import SIGNALS

CASES = int(os.environ.get("VITP_DAMAGE", "12"))
FILES = re.compile(os.environ.get("VITP_DAMAGE_FILES", ""))
PIECE, PIECES = map(int, os.environ.get("VITP_DAMAGE_PIECE", "0/1").split("/"))
COMMANDS_A_CASE = 1 if CASES <= 50 else 99
"""Commands tried of each case."""

EXPORT = ("export-results", "--format", "coco-panoptic")
STAGES = (("generate-proposals",), ("train-classifier",), ("classify",), ("evaluate",), EXPORT)
LATER = (*STAGES, ("status",), ("report",), ("verify",), ("gc",))
CODES = {5, 6}
"""A stage before is not finished (its mark is gone); damaged."""

MEMORIES = re.compile(r"digests\.json|report\.html|.*/log/[^/]+")
"""Without these a run is as whole as one that never had them: `verify` says nothing of them, `status` no speed."""
MARKS = re.compile(r".*/done\.json")
"""Without these a stage is not finished, as `status` says; `verify` says that they are missing."""


# ---- kinds of damage ----------------------------------------------------------------------------------------------


def _bit(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _byte(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([(content[at] + rng.randrange(1, 256)) % 256]) + content[at + 1 :]


def _digit(content: bytes, rng: random.Random) -> bytes:
    """A digit of a number in a text; elsewhere a byte that happens to be one."""
    places = [match.start() for match in re.finditer(rb"[0-9]", content)]
    if not places:
        return content
    at = rng.choice(places)
    return content[:at] + b"%d" % ((content[at] - 48 + rng.randrange(1, 10)) % 10) + content[at + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    """A block as a disk loses it."""
    at, length = rng.randrange(len(content)), rng.choice([1, 16, 512, 4096])
    return content[:at] + bytes(min(length, len(content) - at)) + content[at + length :]


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit": _bit,
    "byte": _byte,
    "digit": _digit,
    "cut": _cut,
    "zeroed": _zeroed,
    "empty": lambda content, rng: b"",
}
OTHERS = ("swapped", "removed")


@dataclass(frozen=True)
class Case:
    """A file of a run and what happens to it; `seed` says where."""

    file: str
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind} {self.file} #{self.seed}"

    def happen(self, run: Path) -> bool:
        """Damages the file of a run; False: that changes nothing."""
        path, rng = run / self.file, random.Random(str(self))
        good = path.read_bytes()
        if self.kind == "removed":
            path.unlink()
            return True
        if self.kind == "swapped":  # with another of its kind
            alike = [p for p in sorted(run.rglob(f"*{path.suffix}")) if p.is_file() and p.read_bytes() != good]
            bad = rng.choice(alike).read_bytes() if alike else good
        else:
            bad = KINDS[self.kind](good, rng) if good else good
        path.unlink()  # it has a second name in the whole run
        path.write_bytes(bad)
        return bad != good


def lacks(case: Case, files: re.Pattern[str]) -> bool:
    """Whether one of such files is gone."""
    return case.kind == "removed" and files.fullmatch(case.file) is not None


def all_cases(files: list[str]) -> Iterator[Case]:
    """Every file with every kind, then the same again at other places, and so on."""
    seed = 0
    while True:
        yield from (Case(file, kind, seed) for file in files for kind in (*KINDS, *OTHERS))
        seed += 1


def chosen_cases(files: list[str]) -> list[Case]:
    """A sample that has each kind and many files; or so many, a piece of them."""
    files = [file for file in files if FILES.search(file)]
    if CASES > 50:
        cases = all_cases(files)
        return [case for number, case in zip(range(CASES), cases, strict=False) if number * PIECES // CASES == PIECE]
    rng, kinds = random.Random(0), [*KINDS, *OTHERS]
    shuffled = rng.sample(files, len(files))
    return [Case(shuffled[n % len(files)], kinds[n % len(kinds)], n) for n in range(CASES)]


# ---- what is done with it -----------------------------------------------------------------------------------------


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run but what is a matter of time: logs, memories, pages; of the figures all but when."""

    def timeless(text: bytes | str) -> dict[str, Any]:
        return {k: v for k, v in json.loads(text).items() if k not in ("provenance", "seal")}

    found: dict[str, Any] = {}
    for path in (p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if not re.fullmatch(r"digests\.json|report\.html|.*/log/.*", name):
            found[name] = path.read_bytes()
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # damaged
            if path.name == "result.json":
                found[name] = timeless(found[name])
            if path.name == "copies.json" and "result.json" in (copies := json.loads(found[name])["files"]):
                found[name] = {**copies, "result.json": timeless(copies["result.json"])}
    return found


@dataclass
class World:
    """A finished run, and what every command does on it.

    Attributes:
        whole: the run. contents: its files.
        outcomes: of every command the code, and what it prints.
    """

    place: Place
    whole: Path
    folder: Path
    capture: pytest.CaptureFixture[str] | None = None

    def __post_init__(self) -> None:
        self.contents = contents(self.whole)
        self.outcomes: dict[tuple[str, ...], tuple[int, str]] = {}

    @property
    def files(self) -> list[str]:
        return sorted(p.relative_to(self.whole).as_posix() for p in self.whole.rglob("*") if p.is_file())

    def copy(self) -> Path:
        """The run once more, at the same place every time: what is printed names it."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.whole, run, copy_function=os.link)
        return run

    def call(self, command: tuple[str, ...], run: Path) -> tuple[int, str, str]:
        """(code, standard output, standard error) of a command in this process."""
        name, *flags = command
        of_run = name in ("status", "report", "verify", "gc")
        line = (name, str(run), *flags) if of_run else words(command, self.place, run)
        output.lost.clear()
        sys.argv = ["vitp", *line]
        self.capture.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capture.readouterr()
        return code, out, err

    def outcome(self, command: tuple[str, ...], run: Path) -> tuple[int, str, str]:
        """What a command did: code, what it printed and made, and its last line."""
        code, out, err = self.call(command, run)
        if command[0] == "report" and code == 0:
            page = (run / "report.html").read_text(encoding="utf-8")
            out += re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|<!-- vitp-sha256: .*", "", page)
        return code, out, err

    def expected(self, command: tuple[str, ...]) -> tuple[int, str]:
        if command not in self.outcomes:
            code, out, err = self.outcome(command, self.copy())
            assert code == 0, err
            self.outcomes[command] = code, out
        return self.outcomes[command]

    def wrong(self, case: Case, commands: list[tuple[str, ...]]) -> Iterator[str]:
        """Everything that is not as it must be."""
        if not case.happen(self.copy()):
            return
        for command in commands:
            run = self.copy()
            case.happen(run)
            code, out, err = self.outcome(command, run)
            excused = command == ("status",) and (lacks(case, MARKS) or lacks(case, MEMORIES))
            if (code, out) != self.expected(command) and not excused:
                lines = [line for line in err.splitlines() if line.startswith("vitp: ")]
                if code not in CODES or len(lines) != 1 or "Traceback" in err:
                    yield f"{command[0]}: code {code} {err[-600:]}"
            now = contents(run)
            if lost := [k for k in self.contents if k != case.file and now.get(k) != self.contents[k]]:
                yield f"{command[0]}: changed {lost}"
        yield from self.not_repaired(case)

    def not_repaired(self, case: Case) -> Iterator[str]:
        run = self.copy()
        case.happen(run)
        code, out, err = self.call(("verify",), run)
        if not lacks(case, MEMORIES) and (code != 6 or f"{run / case.file}: " not in out):
            yield f"verify: code {code} {out} {err[-300:]}"
        code, _, err = self.call(("verify", "--repair"), run)
        if code:
            yield f"verify --repair: code {code} {err[-600:]}"
        for command in STAGES:
            code, _, err = self.call(command, run)
            if code:
                yield f"after repair, {command[0]}: code {code} {err[-600:]}"
        now = contents(run)
        if differ := [k for k in now.keys() | self.contents.keys() if now.get(k) != self.contents.get(k)]:
            yield f"after repair and a rerun, differs in {differ}"
        code, out, err = self.call(("verify",), run)
        if code:
            yield f"after repair, verify: code {code} {out} {err[-300:]}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("damage")
    place = make_place(folder)
    run, before = folder / "run", {number: signal.getsignal(number) for number in SIGNALS}
    perform([words(command, place, run) for command in STAGES])
    perform([("report", str(run))])
    for number, handler in before.items():  # the command line leaves them ignored, for its process would end now
        signal.signal(number, handler)
    run.rename(folder / "whole")
    return World(place, folder / "whole", folder)


@pytest.mark.slow
@pytest.mark.xdist_group("damage")
def test_no_damage_is_silent(
    finished: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitp_pipeline.runtime.progress._hushed", True)
    finished.capture = capfd
    began, kinds, bad = time.monotonic(), Counter(), []
    cases = chosen_cases(finished.files)
    for case in cases:
        commands = random.Random(str(case)).sample(LATER, min(COMMANDS_A_CASE, len(LATER)))
        kinds[case.kind] += 1
        bad += [f"{case}: {reason}" for reason in finished.wrong(case, commands)]
    with capfd.disabled():
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        print(
            f"damage: {len(finished.files)} files; {len(cases)} cases ({counts}), {len(bad)} bad, "
            f"{time.monotonic() - began:.0f} s"
        )
    assert not bad, "\n".join(bad)
