"""Time, memory and size of `vitp report` by the number of images: those of a dataset, over and over.

    python -m benchmarks.report coco-sample --data-root data/coco --images 100 1000 \\
        --classifier runs/coco/classifier/default/model.safetensors --set points=max --set flip=false

Every number of images is a dataset of copies that goes through the stages (generate-proposals, classify, evaluate) as
any other, except that a copy takes the generator's output of the first one. Timed is the command after them, a process
of its own, libraries included. With --work, datasets and runs stay, and a second call measures the report alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets.dataset import Dataset
from vitp_pipeline.generators.base import Output

VITP = [sys.executable, "-c", "from vitp_pipeline.cli.main import main; main()"]
PROPOSE = [sys.executable, "-c", "from benchmarks.report import propose; propose()"]


def propose() -> None:
    """Run `vitp` with OpenMMLab generators that see a frame once: a further equal one has the outputs of the first."""
    from vitp_pipeline.cli.main import main
    from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator

    known: dict[bytes, Output] = {}
    forward = OpenMMLabGenerator.forward

    def remembered(self: OpenMMLabGenerator, frames: Sequence[np.ndarray]) -> list[Output]:
        keys = [hashlib.sha256(frame.tobytes()).digest() for frame in frames]
        new = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in known}
        if new:
            known.update(zip(new, forward(self, list(new.values())), strict=True))
        return [known[key] for key in keys]

    OpenMMLabGenerator.forward = remembered  # type: ignore[method-assign]
    main()


def repeated(recipe_name: str, data_root: Path, root: Path, count: int) -> None:
    """Fills `root` with copies of the split, a COCO panoptic one: the first `count` images of an endless round."""
    recipe = load_recipe(recipe_name)
    split = recipe.stage(ProposalSettings).split
    dataset, (listed, *_) = Dataset(recipe.manifest, data_root, split), recipe.manifest.splits[split].annotations
    document = json.loads((data_root / listed).read_text())
    images, annotations = [], []
    by_id = {image["id"]: image for image in document["images"]}
    for number, annotation in enumerate(islice(cycle(document["annotations"]), count)):
        image = by_id[annotation["image_id"]]
        sample = dataset.sample(str(image["id"]))
        names = [f"{number:012d}{file.suffix}" for file in (sample.image, sample.label)]
        for file, name in zip((sample.image, sample.label), names, strict=True):
            place = (root / file.relative_to(data_root)).with_name(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        images.append(image | {"id": number, "file_name": names[0]})
        annotations.append(annotation | {"image_id": number, "file_name": names[1]})
    (root / listed).parent.mkdir(parents=True, exist_ok=True)
    (root / listed).write_text(json.dumps(document | {"images": images, "annotations": annotations}))


def measure(options: argparse.Namespace, count: int, folder: Path) -> dict[str, Any]:
    """Seconds, peak memory (MiB) and size (MB) of the report on `count` images."""
    root, run, page = folder / "data/set", folder / "run", folder / "report.html"
    data_root = options.data_root.resolve()
    if not root.exists():
        repeated(options.recipe, data_root, root, count)
    where = [options.recipe, "--data-root", str(root), "--out", str(run), "--quiet"]
    subprocess.run([*PROPOSE, "generate-proposals", *where], check=True)
    for stage in ("classify", "evaluate"):
        changes = [word for change in options.set for word in ("--set", change)]
        subprocess.run([*VITP, stage, *where, "--classifier", str(options.classifier.resolve()), *changes], check=True)
    start = time.perf_counter()
    command = [*VITP, "report", str(run), "--data-root", str(root), "--out", str(page), "--quiet"]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("vitp report failed")
    return {
        "images": count,
        "seconds": time.perf_counter() - start,
        "CPU seconds": usage.ru_utime + usage.ru_stime,
        "peak MiB": usage.ru_maxrss / 1024,
        "MB": page.stat().st_size / 1e6,
    }


def table(figures: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| images | seconds | CPU seconds | peak memory, MiB | page, MB |", "|---:|---:|---:|---:|---:|"]
    for f in figures:
        taken = f"{f['seconds']:.1f} | {f['CPU seconds']:.1f}"
        lines.append(f"| {f['images']:,} | {taken} | {f['peak MiB']:.0f} | {f['MB']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of a dataset in COCO's panoptic form")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True, help="a classifier of the recipe's classes")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="keys of [classify]")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep datasets, runs and pages here, in DIR/NUMBER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    figures = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) if options.work is None else options.work / str(count)
            figures.append(measure(options, count, folder))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
