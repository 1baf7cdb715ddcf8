"""Time to draw the training points of one image, by way of sampling.

    python benchmarks/sampling.py --data-root data/coco [--manifest coco-panoptic] [--json FILE]

Medians of CPU time over images and repetitions, on one thread. `draw` is the choice of the points from a map in memory,
at the size given. `read` is the label file to a map of classes, or of objects, as instance-balanced sampling needs it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vitp_pipeline.classifier.training.sampling import sample_points
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.datasets.regions import connected_regions

MODES = ("class-balanced", "instance-balanced", "uniform")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--manifest", default="coco-panoptic")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(518, 518), metavar=("H", "W"))
    parser.add_argument("--points", type=int, default=250)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dataset = Dataset(load_manifest(options.manifest), options.data_root, options.split, options.images)
    times: dict[str, list[float]] = {}
    for sample in dataset.samples:
        labels = resized(dataset.read_semantic(sample), options.size)
        numbers = resized(dataset.read_regions(sample)[0], options.size)
        for mode in MODES:
            values = numbers if mode == "instance-balanced" else labels
            rng = np.random.default_rng(0)
            draw = lambda values=values, rng=rng, mode=mode: sample_points(values, options.points, rng, mode)  # noqa: E731
            times.setdefault(f"draw {mode}", []).extend(measured(draw, options.repeat))
        times.setdefault("read classes", []).extend(measured(lambda s=sample: dataset.read_semantic(s), 3))
        times.setdefault("read regions", []).extend(measured(lambda s=sample: dataset.read_regions(s), 3))
        pieces = measured(lambda labels=labels: connected_regions(labels), 3)
        times.setdefault("connected pieces", []).extend(pieces)
    figures = {name: 1000 * float(np.median(values)) for name, values in times.items()}
    print(f"{len(dataset)} images of {options.manifest}, {options.size[0]}×{options.size[1]}, N = {options.points}")
    for name, value in figures.items():
        worst = 1000 * float(np.quantile(times[name], 0.95))
        print(f"{name:24s} median {value:6.2f} ms    95 % below {worst:6.2f} ms")
    if options.json:
        options.json.write_text(json.dumps({"points": options.points, "size": options.size, "ms": figures}, indent=1))


def measured(call: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of CPU of each call, the first not counted: what else the machine does has no part in it."""
    call()
    found = []
    for _ in range(repeat):
        began = time.thread_time()
        call()
        found.append(time.thread_time() - began)
    return found


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(values.astype(np.int32)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(picture).astype(values.dtype)


if __name__ == "__main__":
    main()
