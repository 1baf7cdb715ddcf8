"""Speed of stage one beside its limit: the bare forward of the same generator on the same images.

    python -m benchmarks.proposals camvid --data-root ../shared/data/camvid --images 16

`ours` is the stage: reads and resizes images, forward, chooses points, compresses, writes and commits. `bare` runs the
network on frames that were read and resized before. Both in one process, alternating, with the same threads. Beside the
ratio of images a second stands that of the seconds of the processor, over all threads: where the forward keeps every
core busy, no overlapping gets beyond it.

`--profile` times the steps beside the forward one by one instead, on one thread: what the other threads do meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.paired import Comparison, compare


class StageOne:
    """The first images of a recipe's split, through the stage and through the network alone."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        from vitp_pipeline.artifacts.run import create_or_check
        from vitp_pipeline.config.flags import parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import ProposalSettings
        from vitp_pipeline.datasets import Dataset
        from vitp_pipeline.generators.registry import find_source
        from vitp_pipeline.stages.generate_proposals import ProposalMaker, load_generator
        from vitp_pipeline.storage.run_store import LocalStore

        recipe = load_recipe(options.recipe)
        flags = {"limit": options.images, "device": options.device} | parse_changes(options.set)
        settings = recipe.stage(ProposalSettings, **flags)
        dataset = Dataset(recipe.manifest, options.data_root, settings.split, settings.limit)
        source = find_source(settings, lambda text: recipe.find_file(text, options.data_root))
        self.generator = load_generator(source, settings, recipe.manifest)
        self.images = [sample.image_id for sample in dataset.samples]
        about, images = {"stage": "proposals"}, tuple(self.images)
        run = create_or_check(LocalStore(work), work / "proposals", about, images, 1, len(images))
        self.run, self.maker = run, ProposalMaker(run, dataset, self.generator, settings)
        self.frames = [self.generator.resize(dataset.read_image(sample)) for sample in dataset.samples]
        self.batch = settings.batch_size

    def ours(self) -> None:
        from vitp_pipeline.execution.runner import run_parts
        from vitp_pipeline.runtime.progress import hush

        shutil.rmtree(self.run.folder / "shards", ignore_errors=True)
        hush()
        outcome = run_parts(self.run, [0], lambda: self.maker, "proposals")
        hush(False)
        assert (outcome.made, outcome.failed) == (len(self.images), [])

    @property
    def bytes(self) -> int:
        """On disk, index included."""
        return self.run.read_done(0)["bytes"]

    def bare(self) -> None:
        for first in range(0, len(self.frames), self.batch):
            self.generator.forward(self.frames[first : first + self.batch])

    def profile(self, repeats: int) -> dict[str, float]:
        """Milliseconds of the processor an image takes in each step, the median of the repeats."""
        import torch

        from vitp_pipeline.artifacts.mask_codec import store_masks
        from vitp_pipeline.artifacts.parts import ArrayWriter
        from vitp_pipeline.artifacts.proposals import ProposalRecord, write_record
        from vitp_pipeline.config.generate_proposals import MasksOfView
        from vitp_pipeline.generators.views import propose
        from vitp_pipeline.postprocess.point_policies import choose_points
        from vitp_pipeline.postprocess.upsample import source_reach

        maker, protocol = self.maker, self.generator.protocol
        dataset, settings = maker.dataset, maker.settings
        pictures = [dataset.read_image(dataset.sample(image)) for image in self.images]
        found = [propose(self.generator, [picture], maker.plan.scales[0])[0] for picture in pictures]
        masks = [f.mask_logits.float() for f in found]
        objectness = [1 - f.class_logits.double().softmax(1)[:, -1].numpy() for f in found]
        codec, threads = settings.codec, torch.get_num_threads()
        torch.set_num_threads(1)
        shown = [MasksOfView(m, f.view, protocol, "x") for m, f in zip(masks, found, strict=True)]
        points = [choose_points(each, settings) for each in shown]
        stored = [
            store_masks(m, p, codec, source_reach(f.view)) for m, p, f in zip(masks, objectness, found, strict=True)
        ]
        records = [
            ProposalRecord(i, i, f.view, protocol, s.kept, 0.0, p, f.class_logits.numpy(), s.masks, loss=s.loss)
            for i, f, s, p in zip(self.images, found, stored, points, strict=True)
        ]

        def write() -> None:
            with tempfile.TemporaryDirectory() as folder:
                writer = ArrayWriter(Path(folder) / "part.zarr.zip", {})
                for record in records:
                    write_record(writer, record)
                writer.close()

        steps = {
            "read": lambda: [dataset.read_image(dataset.sample(image)) for image in self.images],
            "resize": lambda: [self.generator.resize(picture) for picture in pictures],
            "choose points": lambda: [choose_points(each, settings) for each in shown],
            "drop, floor, round": lambda: [
                store_masks(m, p, codec, source_reach(f.view)) for m, p, f in zip(masks, objectness, found, strict=True)
            ],
            "compress, write": write,
        }
        taken = {name: statistics.median(_processor(step) for _ in range(repeats)) for name, step in steps.items()}
        torch.set_num_threads(threads)
        return {name: 1000 * seconds / len(self.images) for name, seconds in taken.items()}


def _processor(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def results_of(found: Comparison, stage: StageOne, options: argparse.Namespace) -> dict:
    import torch

    return {
        "ours": found.ours_per_second,
        "bare": found.bare_per_second,
        "ratio": found.ratio,
        "ratios": found.ratios,
        "cpu_ratio": found.cpu_ratio,
        "seconds": {"ours": found.ours, "bare": found.bare},
        "cpu_seconds": {"ours": found.ours_cpu, "bare": found.bare_cpu},
        "bytes_per_image": stage.bytes / len(stage.images),
        "settings": {
            "generator": stage.generator.describe,
            "images": len(stage.images),
            "batch_size": stage.batch,
            "repeats": options.repeats,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }


def report(results: dict) -> str:
    """The figures as a Markdown table."""
    low, high = results["ratios"]
    cells = [
        f"{results['ours']:.2f}",
        f"{results['bare']:.2f}",
        f"{results['ratio']:.3f} ({low:.3f}, {high:.3f})",
        f"{results['cpu_ratio']:.3f}",
        f"{results['bytes_per_image'] / 1000:.0f}",
    ]
    return "\n".join(
        [
            "| ours, images/s | bare, images/s | ratio (lowest, highest of a pair) | of processor time | kB an image |",
            "|---:|---:|---:|---:|---:|",
            "| " + " | ".join(cells) + " |",
            "",
            json.dumps(results["settings"]),
        ]
    )


def main() -> None:
    options = parse()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    with tempfile.TemporaryDirectory() as work:
        stage = StageOne(options, Path(work))
        if options.profile:
            rows = stage.profile(options.repeats)
            print("| step | ms an image |", "|---|---:|", *(f"| {n} | {ms:.1f} |" for n, ms in rows.items()), sep="\n")
            return
        found = compare(stage.ours, stage.bare, len(stage.images), options.repeats)
        results = results_of(found, stage, options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16, help="the first of the split")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="keys of [generate-proposals]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = its own choice")
    parser.add_argument("--profile", action="store_true", help="the steps beside the forward, one by one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
