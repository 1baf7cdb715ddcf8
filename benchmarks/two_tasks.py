"""Several array tasks of stage one at once, one thread each, beside as many bare generator loops at once.

    python -m benchmarks.two_tasks camvid --data-root data/camvid --images 8

Every task is a process with a generator of its own. They do their work together: all of them the stage's (read,
forward, choose points, compress, write), then all of them the bare forward on frames that were read before, in turn;
the time is that of the slowest. See `benchmarks.proposals` for what either is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.paired import Comparison, compare

WORKER = "--worker"


class Tasks:
    """Processes that run the same work at the same time."""

    def __init__(self, count: int, words: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.two_tasks", *words, WORKER]
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) for _ in range(count)
        ]
        self._wait()  # until every one has its generator

    def together(self, what: str) -> None:
        """Has all of them do `ours` or `bare` once, and waits for the last one."""
        for process in self.processes:
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        for process in self.processes:
            while (line := process.stdout.readline()) != "done\n":
                if not line:
                    raise RuntimeError(f"a task ended with code {process.wait()}")

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait()


def work(options: argparse.Namespace) -> None:
    """One of the processes: a line on standard input says what to do, one on standard output that it is done."""
    import torch

    from benchmarks.proposals import StageOne

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stage = StageOne(options, Path(folder))
        print("done", flush=True)
        for line in sys.stdin:
            {"ours": stage.ours, "bare": stage.bare}[line.strip()]()
            print("done", flush=True)


def results_of(found: Comparison, options: argparse.Namespace) -> dict:
    return {
        "ours": found.ours_per_second,
        "bare": found.bare_per_second,
        "ratio": found.ratio,
        "ratios": found.ratios,
        "seconds": {"ours": found.ours, "bare": found.bare},
        "settings": {
            "recipe": options.recipe,
            "tasks": options.tasks,
            "images a task": options.images,
            "repeats": options.repeats,
            "cores": len(os.sched_getaffinity(0)),
            "load before": os.getloadavg()[0],
        },
    }


def report(results: dict) -> str:
    """The figures as a Markdown table."""
    low, high = results["ratios"]
    figures = f"| {results['ours']:.2f} | {results['bare']:.2f} | {results['ratio']:.3f} ({low:.3f}, {high:.3f}) |"
    head = "| tasks, images/s together | bare loops, images/s together | ratio (lowest, highest of a pair) |"
    return "\n".join([head, "|---:|---:|---:|", figures, "", json.dumps(results["settings"])])


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    tasks = Tasks(options.tasks, sys.argv[1:])
    try:
        units = options.tasks * options.images
        found = compare(lambda: tasks.together("ours"), lambda: tasks.together("bare"), units, options.repeats)
    finally:
        tasks.close()
    results = results_of(found, options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--images", type=int, default=8, help="of each task, the first of the split")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="keys of [generate-proposals]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(WORKER, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
