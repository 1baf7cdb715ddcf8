"""Killed, out of disk space or torn at any step of a write and then run again, every stage ends with the same bytes.

Every step that goes through `storage.fs_ops` in a run without faults is noted; a case is one of them with one fault.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.disks import disk_of
from tests.faults.faulty import Case, Fault, read_points
from tests.faults.scenarios import SCENARIOS, Place, begin, make_place, results, words
from tests.faults.tasks import Server, Task
from vitp_pipeline.storage.fs_ops import Step

CASES = int(os.environ.get("VITP_FAULTS", "0"))
"""Cases a scenario, spread over its steps and faults, in place of its sample."""
SIZES = CASES // 2 or 1
"""Sizes of a disk that is too small, a scenario."""
PAGE = 4096
FULL = r"vitp: {run}/\S+: the disk is full \([0-9.]+ MB free\)\. .+"

pytestmark = [pytest.mark.kill, pytest.mark.xdist_group("faults")]  # one server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def hushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitp_pipeline.runtime.progress._hushed", True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


class Stand:
    """Runs of the scenarios, with and without faults."""

    def __init__(self, server: Server, place: Place, folder: Path) -> None:
        self.server, self.place, self.folder = server, place, folder
        self.ends: dict[str, Path] = {}

    def end(self, scenario: str) -> Path:
        """The run that a scenario without faults ends with; its steps are noted beside it."""
        if scenario not in self.ends:
            run = self.folder / scenario
            self.begin(scenario, run)
            log = run.with_suffix(".log")
            assert self.task(scenario, run, log, notes=self.notes(scenario)) == 0, log.read_text()
            self.ends[scenario] = run
        return self.ends[scenario]

    def notes(self, scenario: str) -> Path:
        return self.folder / f"{scenario}.steps"

    def begin(self, scenario: str, run: Path) -> None:
        """Makes the run that a scenario begins with."""
        chosen = SCENARIOS[scenario]
        if chosen.broken and "broken" not in self.ends:
            self.ends["broken"] = broken = self.folder / "broken"
            command = words(("generate-proposals",), self.place, broken, self.place.broken)
            assert self.server.run(Task((command,), broken, broken.with_suffix(".log"))) == 7
        for name in chosen.after:
            self.end(name)
        begin(chosen, self.ends, run)

    def task(self, scenario: str, run: Path, log: Path, case: Case | None = None, notes: Path | None = None) -> int:
        chosen = SCENARIOS[scenario]
        commands = tuple(words(command, self.place, run) for command in chosen.commands)
        return self.server.run(Task(commands, run, log, chosen.stops, chosen.keeps, case, notes))


@pytest.fixture(scope="module")
def stand(server: Server, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(server, place, tmp_path_factory.mktemp("runs"))


def choose(cases: Sequence[Case], count: int, seed: str) -> list[Case]:
    """So many of them: one of each kind, then a second of each, and so on, the faults in turn.

    Cases that differ by image, part, or how often the step was come by before are of one kind. The same seed chooses
    the same.
    """
    rng, seen, turns, keyed = random.Random(seed), Counter(), Counter(), []
    order = rng.sample(list(Fault), len(Fault))
    for case in rng.sample(cases, len(cases)):
        kind = case.fault, case.point.step, re.sub(r"[0-9]+", "N", case.point.file)
        depth, seen[kind] = seen[kind], seen[kind] + 1
        turn, turns[case.fault, depth] = turns[case.fault, depth], turns[case.fault, depth] + 1
        keyed.append((depth, turn, order.index(case.fault), case))
    return [case for *_, case in sorted(keyed, key=lambda entry: entry[:3])][:count]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_rerun_after_any_fault_ends_with_the_same_bytes(scenario: str, stand: Stand, tmp_path: Path) -> None:
    expected = results(stand.end(scenario))
    points = read_points(stand.notes(scenario))
    cases = [Case(point, fault) for point in points for fault in point.faults]
    chosen = choose(cases, CASES or SCENARIOS[scenario].sample, scenario)
    began, bad = time.monotonic(), []
    for number, case in enumerate(chosen):
        if reason := _wrong(stand, scenario, case, expected, tmp_path / f"run-{number}"):
            bad.append(f"{case}: {reason}")
    by_fault = Counter(case.fault for case in chosen)
    print(
        f"{scenario}: {len(points)} steps, {len(cases)} cases; {len(chosen)} run ("
        + ", ".join(f"{by_fault[fault]} {fault}" for fault in Fault)
        + f"), {len(bad)} bad, {time.monotonic() - began:.0f} s"
    )
    assert not bad, "\n".join(bad)


def _wrong(stand: Stand, scenario: str, case: Case, expected: dict[str, Any], run: Path) -> str:
    """Runs a scenario with a fault, then again without; what is wrong, or nothing."""
    from vitp_pipeline.runs.gc import collect

    chosen, log = SCENARIOS[scenario], run.with_suffix(".log")
    stand.begin(scenario, run)
    code, said = stand.task(scenario, run, log, case), log.read_text(encoding="utf-8", errors="replace")
    if code != (8 if case.fault is Fault.FULL else -9):
        return f"ended with {code}: {said}"
    if case.fault is Fault.FULL:
        lines = [line for line in said.splitlines() if line.startswith("vitp: ") and "stopped by" not in line]
        if len(lines) != 1 or not re.fullmatch(FULL.format(run=run), lines[0]) or "Traceback" in said:
            return f"said: {said}"
        if left := [path.name for path in run.rglob("*.tmp")]:
            return f"left {left}"
    if not chosen.damaged and (reason := _damage(run)):
        return f"before the rerun, {reason}"
    committed = _committed(run)
    if code := stand.task(scenario, run, log):
        return f"the rerun ended with {code}: {log.read_text(encoding='utf-8', errors='replace')}"
    # what is damaged or failed is made anew on purpose
    if not (chosen.damaged or chosen.broken or committed.items() <= _committed(run).items()):
        return "the rerun made parts anew that were committed"
    made = results(run)
    if differ := sorted(k for k in made.keys() | expected.keys() if made.get(k) != expected.get(k)):
        return f"differs in {differ}"
    if reason := _damage(run):
        return f"after the rerun, {reason}"
    collect(run)
    if left := [path for path in run.rglob("*") if path.name == "lock" or path.suffix == ".tmp"]:
        return f"`vitp gc` leaves {left}"
    if (made := results(run)) != expected:
        return f"`vitp gc` removed some of {expected.keys() - made.keys()}"
    shutil.rmtree(run)
    return ""


@pytest.mark.parametrize("scenario", ["proposals", "training", "export"])
def test_a_disk_that_is_full(scenario: str, stand: Stand, small_disk: Path) -> None:
    """The kernel refuses: the run lies on a file system that is too small for it, and then grows."""
    expected, codes = results(stand.end(scenario)), []
    files = [path.stat().st_size for path in stand.end(scenario).rglob("*") if path.is_file()]
    need, began = sum(-(-size // PAGE) for size in files), time.monotonic()
    for number in range(SIZES):
        before = small_disk.parent / f"before-{number}"
        stand.begin(scenario, before)
        own = sum(-(-path.stat().st_size // PAGE) for path in before.rglob("*") if path.is_file())
        _resize(small_disk, 1 << 30)
        shutil.copytree(before, small_disk / "run")
        _resize(small_disk, PAGE * (own + 2 + round((need - own) * (number + 0.5) / SIZES)))
        log = small_disk.parent / f"{number}.log"
        codes.append(stand.task(scenario, small_disk / "run", log))
        said = log.read_text(encoding="utf-8", errors="replace")
        assert codes[-1] == 0 or (codes[-1] == 8 and re.search(FULL.format(run=small_disk / "run"), said)), said
        assert not list((small_disk / "run").rglob("*.tmp"))
        assert not _damage(small_disk / "run")
        _resize(small_disk, 1 << 30)
        assert stand.task(scenario, small_disk / "run", log) == 0
        assert results(small_disk / "run") == expected
        shutil.rmtree(small_disk / "run")
    print(f"{scenario}: {codes.count(8)} of {SIZES} disks were too small, {time.monotonic() - began:.0f} s")
    assert codes[0] == 8


def _resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of("1M", tmp_path / "disk") as folder:
        yield folder


def _damage(run: Path) -> str:
    """What `vitp verify` and `vitp status` find amiss with a run; nothing where there is none yet."""
    from vitp_pipeline.errors import InputError, UserError
    from vitp_pipeline.runs.status import run_status
    from vitp_pipeline.runs.verify import verify_run

    try:
        run_status(run)
        damages = verify_run(run).damages
    except InputError:
        return ""
    except UserError as error:
        return str(error)
    return ", ".join(f"{damage.path} {damage.reason}" for damage in damages)


def _committed(run: Path) -> dict[str, tuple[int, int]]:
    """(inode, mtime) of every committed part."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in run.rglob("part-*.parquet")}


def test_every_write_is_noted(stand: Stand) -> None:
    """Python changes no file of a run by another way, and of no file fewer bytes are noted than it holds."""
    steps = set()
    for scenario in SCENARIOS:
        run, notes = stand.end(scenario), stand.notes(scenario)
        strays = notes.with_suffix(".strays")
        assert not strays.exists(), strays.read_text()
        noted: Counter[str] = Counter()
        for point in read_points(notes):
            noted[point.file.rstrip("~")] += point.size
            steps.add(point.step)
        there = run.with_name(f"{scenario}-before")
        stand.begin(scenario, there)
        before = {path.relative_to(there) for path in there.rglob("*")}
        for path in (path for path in run.rglob("*") if path.is_file()):
            name = path.relative_to(run)
            written_as = re.sub(r"(part-\d+)-\w+(\.zarr\.zip)", r"\1\2", name.as_posix())  # called by its digest then
            assert name in before or noted[written_as] >= path.stat().st_size, name
    assert steps == set(Step)
