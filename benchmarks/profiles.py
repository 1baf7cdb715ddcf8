"""Where the time of a stage goes: its functions, or its operators beside those of the bare model.

    python -m benchmarks.profiles stage-one --data data
    python -m benchmarks.profiles evaluate --data data
    python -m benchmarks.profiles all-tasks --data data
    python -m benchmarks.profiles classify --data data
    python -m benchmarks.profiles train --data data

`stage-one` and `evaluate` list Python functions with their own seconds of the processor (cProfile), on CamVid, on one
thread; stage one's threads beside the main one are not in it: `benchmarks.proposals --profile` has their steps.
`all-tasks` does the same for the drawn scenes of `benchmarks.coco_tasks`. `classify` and `train` list what
torch.profiler saw of ViT-S/14 with 250 points, in vitp and in the bare timm loop, those operators first that differ
most.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SMALL = "--size 252 336 --points 250 --batch 4 --steps 2 --device cpu"


def functions(work: Callable[[], object], repeats: int, rows: int) -> None:
    """Print the functions that take most of the processor's time."""
    work()
    found = cProfile.Profile(time.process_time)
    for _ in range(repeats):
        found.runcall(work)
    pstats.Stats(found).strip_dirs().sort_stats("tottime").print_stats(rows)


def operators(ours: Callable[[], object], bare: Callable[[], object], rows: int) -> list[tuple[str, float, float]]:
    """Print and return (operator, milliseconds of its own in ours, in bare), by the size of the difference."""
    from torch.profiler import ProfilerActivity, profile

    taken: list[dict[str, float]] = []
    for work in (ours, bare):
        work()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            work()
        taken.append({event.key: event.self_cpu_time_total / 1000 for event in seen.key_averages()})
    first, second = taken
    table = [(name, first.get(name, 0.0), second.get(name, 0.0)) for name in first.keys() | second.keys()]
    table.sort(key=lambda row: (-abs(row[1] - row[2]), row[0]))
    print("| operator | ours, ms | bare, ms |\n|---|---:|---:|")
    for name, a, b in [("all", sum(first.values()), sum(second.values())), *table[:rows]]:
        print(f"| {name} | {a:.1f} | {b:.1f} |")
    return table


def stage_one(options: argparse.Namespace) -> None:
    from benchmarks.proposals import StageOne

    words = {"recipe": "camvid", "data_root": options.data / "camvid", "images": options.images, "set": None}
    with tempfile.TemporaryDirectory() as folder:
        stage = StageOne(argparse.Namespace(**words, device="cpu"), Path(folder))
        functions(stage.ours, options.repeats, options.rows)


def evaluate(options: argparse.Namespace) -> None:
    """On the generator alone: semantic and panoptic maps of every variant."""
    import shutil

    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.runtime.progress import hush
    from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
    from vitp_pipeline.stages.generate_proposals import generate_proposals

    hush()
    recipe, root, shard = load_recipe("camvid"), options.data / "camvid", ShardChoice()
    settings, classify = recipe.stage(EvaluateSettings, alpha=0.0, device="cpu"), recipe.stage(ClassifySettings)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        generate_proposals(recipe, recipe.stage(ProposalSettings, limit=options.images, device="cpu"), root, run, shard)

        def work() -> None:
            shutil.rmtree(run / "evaluation", ignore_errors=True)
            evaluate_shards(prepare(recipe, settings, classify, (), root, run, shard), settings, classify, [0])

        functions(work, options.repeats, options.rows)


def all_tasks(options: argparse.Namespace) -> None:
    from benchmarks.coco_tasks import Work

    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), options.images)
        proposals = work.stored("bounded")
        functions(lambda: work.ours(proposals), options.repeats, options.rows)


def classifier(task: str) -> Callable[[argparse.Namespace], None]:
    def profiled(options: argparse.Namespace) -> None:
        import torch

        from benchmarks.classifier import Bare, Data, Ours, parse

        words = [*SMALL.split(), "--images", str(options.data / "camvid/images/val"), *options.set]
        settings = parse(words)
        torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory() as folder:
            data = Data(Path(folder), settings.batch * settings.steps, settings.points, settings.images)
            ways = (getattr(way(data, settings), task) for way in (Ours, Bare))
            operators(*ways, options.rows)

    return profiled


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "stage-one": stage_one,
    "evaluate": evaluate,
    "all-tasks": all_tasks,
    "classify": classifier("classify"),
    "train": classifier("train"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--data", type=Path, required=True, help="a folder that holds camvid, weights beside it")
    parser.add_argument("--images", type=int, default=16, help="of stage-one, evaluate and all-tasks")
    parser.add_argument("--repeats", type=int, default=3, help="of stage-one, evaluate and all-tasks")
    parser.add_argument("--rows", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="words of benchmarks.classifier, last")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    os.environ.setdefault("VITP_WEIGHTS", str((options.data / "../weights").resolve()))
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
