"""A line of the table of `python -m benchmarks`, and how lines are made of measurements."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paired import Comparison


@dataclass(frozen=True)
class Options:
    """Where the data lies; `quick`: as few images and repeats as show that it works."""

    data: Path
    threads: int
    quick: bool = False

    @property
    def repeats(self) -> int:
        return 1 if self.quick else 5

    @property
    def camvid(self) -> Path:
        return self.data / "camvid"

    def few(self, quick: int, whole: int) -> int:
        """A number of images, or the like."""
        return quick if self.quick else whole


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure, what it may be at least or at most (None: only reported), and where it is from.

    Attributes:
        value: with `lowest` and `highest` of the single repeats, where there are some.
        goal: positive: at least; negative: at most its size.
        unit: of the value: "×" for ratios.
    """

    work: str
    against: str
    ours: str
    theirs: str
    value: float
    lowest: float | None = None
    highest: float | None = None
    goal: float | None = None
    unit: str = "×"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.goal > 0 else self.value <= -self.goal


def of_pair(work: str, against: str, found: Comparison, goal: float | None, note: str = "") -> Line:
    """The ratio of two speeds."""
    speeds = (f"{speed:.4g} images/s" for speed in (found.ours_per_second, found.bare_per_second))
    return Line(work, against, *speeds, found.ratio, *found.ratios, goal, note=note)


def of_times(work: str, against: str, found: Comparison, goal: float | None, note: str = "") -> Line:
    """The ratio of two durations, of one unit of work: goals are upper limits, below 0."""
    times = (f"{1 / speed:.3g} s" for speed in (found.ours_per_second, found.bare_per_second))
    low, high = (1 / ratio for ratio in reversed(found.ratios))
    return Line(work, against, *times, 1 / found.ratio, low, high, goal, note=note)


def of_figures(work: str, against: str, found: dict, goal: float | None, note: str = "") -> Line:
    """The ratio of two speeds that a benchmark wrote as JSON."""
    speeds = (f"{found[side]:.4g} images/s" for side in ("ours", "bare"))
    return Line(work, against, *speeds, found["ratio"], *found["ratios"], goal, note=note)


def figures_of(module: str, words: list[str]) -> dict:
    """What the `main` of a benchmark writes with --json."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        kept, sys.argv = sys.argv, [module, *words, "--json", str(file)]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(f"benchmarks.{module}").main()
        finally:
            sys.argv = kept
        return json.loads(file.read_text())
