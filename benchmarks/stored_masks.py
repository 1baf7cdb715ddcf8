"""Memory and time of each stage after `vitp import-proposals` on photographs with many large binary masks.

    python -m benchmarks.stored_masks --megapixels 12 --masks 100 --json docs/measured/stored-masks.json

Photographs, masks and classifier are those of `benchmarks.predict_masks`, labels are rectangles of random classes. Each
command runs in a process of its own: its peak (VmHWM) has the libraries in it. Evaluated are semantic and panoptic
maps, instances and boundary IoU. Dense, masks would take 4 bytes a pixel and mask at every stage after `classify`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.predict_masks import CLASSES, PROGRAM, draw

WHERE = ["recipe.toml", "--data-root", "photos", "--out", "run"]
COMMANDS = {
    "import-proposals": ["import-proposals", *WHERE, "--from", "coco", "--masks", "masks.json"],
    "classify": ["classify", *WHERE, "--classifier", "model.safetensors"],
    "evaluate": ["evaluate", *WHERE],
    "export-results, semantic": ["export-results", *WHERE, "--format", "label-png"],
    "export-results, panoptic": ["export-results", *WHERE, "--format", "coco-panoptic"],
    "export-results, instances": ["export-results", *WHERE, "--format", "coco-results"],
    "report": ["report", "run", "--data-root", "photos", "--recipe", "recipe.toml"],
}
RECIPE = """
manifest = "drawn.toml"
[classify]
classifier = "model.safetensors"
[evaluate]
alpha = 0.4
tasks = ["semantic", "panoptic", "instance"]
components = true
boundary_iou = true
object_threshold = 0.0
"""


def prepare(root: Path, megapixels: float, masks: int, images: int) -> None:
    """Write photographs, labels, masks, a recipe and a classifier."""
    from PIL import Image

    draw(root, megapixels, masks, images)
    (root / "recipe.toml").write_text(RECIPE)
    rng = np.random.default_rng(1)
    for photo in (root / "photos").glob("*.jpg"):
        width, height = Image.open(photo).size
        labels = Image.fromarray(rng.integers(0, CLASSES, (6, 8), np.uint8))
        labels.resize((width, height), Image.Resampling.NEAREST).save(photo.with_suffix(".png"))


def measure(root: Path, command: str) -> dict[str, float]:
    """Run a command; MiB at its peak, and seconds of processor time."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *COMMANDS[command]],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - began.ru_utime - began.ru_stime
    return {"seconds": round(seconds, 1), "peak": round(int(done.stdout.split()[-1]) / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    a = parser.parse_args()
    figures = {}
    print("| command | peak, MiB | processor seconds an image |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), a.megapixels, a.masks, a.images)
        for command in COMMANDS:
            found = figures[command] = measure(Path(folder), command)
            print(f"| {command} | {found['peak']:,} | {found['seconds'] / a.images:.0f} |", flush=True)
    if a.json:
        about = {"megapixels": a.megapixels, "masks": a.masks, "images": a.images}
        a.json.write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
