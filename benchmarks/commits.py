"""Compare the speed of two commits: the same commands of both checkouts, in turn.

    export VITP_WEIGHTS=../shared/weights
    git worktree add ../before COMMIT
    python -m benchmarks.commits --before ../before --data data/camvid

A command is a process of its own. `--pairs` times it runs from the checkout --before and from this one, in an order
that swaps from pair to pair. A ratio is of medians, before over after: above 1, this checkout is faster. Seconds of the
processor of all threads together stand beside seconds of the clock, which other processes disturb more. Both checkouts
run on this Python's packages, each with its own recipes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parents[1]
VITP = "import sys; from vitp_pipeline.cli.main import main; sys.exit(main())"
DRAWN = """
import time
from benchmarks.semantic import drawn_case, ours
case = drawn_case("ADE20K-like", (512, 683), 250, 25, 150, 4)
ours(case)
"""
RECIPE = "camvid"


@dataclass
class Row:
    """One command's (clock, processor) seconds in every pair."""

    name: str
    before: list[tuple[float, float]] = field(default_factory=list)
    after: list[tuple[float, float]] = field(default_factory=list)

    def ratio(self, which: int) -> float:
        return statistics.median(t[which] for t in self.before) / statistics.median(t[which] for t in self.after)

    def ratios(self, which: int) -> tuple[float, float]:
        """Lowest and highest ratio of a pair."""
        pairs = [b[which] / a[which] for b, a in zip(self.before, self.after, strict=True)]
        return min(pairs), max(pairs)


def run(checkout: Path, code: str, words: list[str], threads: int) -> tuple[float, float]:
    """(seconds of the clock, of the processor) of one process.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=checkout, env=environment, capture_output=True, text=True
    )
    clock, now = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{checkout}: vitp {' '.join(words)}: code {done.returncode}\n{done.stderr[-2000:]}")
    return clock, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def sample(data: Path, folder: Path, train: int, val: int) -> Path:
    """A copy of CamVid with its first images of each split."""
    for split, count in (("train", train), ("val", val)):
        for image in sorted((data / "images" / split).iterdir())[:count]:
            for source in (image, data / "annotations" / split / f"{image.stem}.png"):
                target = folder / source.relative_to(data)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    return folder


def rows(before: Path, data: Path, folder: Path, pairs: int, threads: int, only: str = "") -> list[Row]:
    """Run every command `pairs` times from both checkouts; those whose name lacks `only` once, untimed."""
    checkouts = {"before": before, "after": HERE}
    outs = {name: folder / name for name in checkouts}

    def stage(name: str, *more: str) -> Callable[[str], tuple[float, float]]:
        def one(which: str) -> tuple[float, float]:
            words = [name, RECIPE, "--data-root", str(data), "--out", str(outs[which]), *more]
            return run(checkouts[which], VITP, words, threads)

        return one

    def removing(folder_of: str, command: Callable[[str], tuple[float, float]]) -> Callable[[str], tuple[float, float]]:
        """The command on a run that lacks what it makes."""

        def one(which: str) -> tuple[float, float]:
            for made in outs[which].glob(folder_of):
                shutil.rmtree(made)
            return command(which)

        return one

    def report(which: str) -> tuple[float, float]:
        words = ["report", str(outs[which]), "--data-root", str(data), "--recipe", RECIPE]
        return run(checkouts[which], VITP, [*words, "--out", str(folder / f"{which}.html")], threads)

    def once(command: Callable[[str], tuple[float, float]]) -> None:
        for which in checkouts:
            command(which)

    found = []

    def compare(name: str, command: Callable[[str], tuple[float, float]]) -> None:
        row = Row(name)
        once(command)  # files in the cache, compiled modules
        if only not in name:
            return
        for pair in range(pairs):
            for which in ("before", "after") if pair % 2 else ("after", "before"):
                getattr(row, which).append(command(which))
        found.append(row)
        low, high = row.ratios(1)
        print(
            f"{name}: {row.ratio(0):.3f} of the clock, {row.ratio(1):.3f} of the processor ({low:.3f}, {high:.3f})",
            flush=True,
        )

    compare("generate-proposals, CamVid", removing("proposals", stage("generate-proposals")))
    once(stage("train-classifier"))
    compare("classify, CamVid", removing("class*s", stage("classify")))
    compare("evaluate, CamVid", removing("evaluation", stage("evaluate")))
    compare("report, CamVid", report)
    compare("semantic labels, ADE20K-like", lambda which: run(checkouts[which], DRAWN, [], threads))
    compare("vitp --help", lambda which: run(checkouts[which], VITP, ["--help"], threads))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commits", description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the other commit")
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder camvid; VITP_WEIGHTS must name the weights"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, nargs=2, default=(24, 48), metavar=("TRAIN", "VAL"))
    parser.add_argument(
        "--only", default="", help="time only commands with this in their name: evaluate", metavar="TEXT"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = sample(options.data.resolve(), Path(folder) / "data/camvid", *options.images)
        (Path(folder) / "weights").symlink_to(
            Path(os.environ["VITP_WEIGHTS"]).resolve()
        )  # recipes of before 0.2 look here
        found = rows(options.before.resolve(), data, Path(folder), options.pairs, options.threads, options.only)
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
