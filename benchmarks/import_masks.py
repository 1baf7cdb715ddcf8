"""Memory and time of `vitp import-proposals --from sam`: 50 photographs of 12 megapixels with 100 masks each.

    python -m benchmarks.import_masks --json docs/measured/import-masks.json

Drawn are outlines of random size, from a thousandth to half of the image, as run lengths in a JSON file an image, as
Segment Anything's amg.py --convert-to-rle writes them. The import runs in a process of its own; `start` is the memory
that libraries and data set take before the first image, `peak` the most that the process ever took (VmHWM). Parts of
the processor's time: `read` the JSON file and check its records, `points` to choose the points, `store` to make,
compress and write the masks, which is the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

MANIFEST = """
name = "drawn"
classes = [{ name = "thing", label = 1, thing = true }, { name = "stuff", label = 2, thing = false }]
[labels]
kind = "semantic-png"
ignore = [0]
[splits.val]
images = "images/*.jpg"
"""


def outline(random: np.random.Generator, size: tuple[int, int]) -> list[float]:
    """A closed curve x1, y1, x2, y2, … around a random place, rough in five frequencies."""
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = np.sqrt(np.exp(random.uniform(np.log(1e-3), np.log(0.5))) * size[0] * size[1] / np.pi)
    waves = [random.normal(0, 0.25 / n) * np.cos(n * angles + random.uniform(0, 2 * np.pi)) for n in range(2, 7)]
    curve = radius * (1 + np.sum(waves, 0)).clip(0.2)
    row, col = random.uniform(0, 1, 2) * size
    corners = np.stack([col + curve * np.cos(angles), row + curve * np.sin(angles)], 1)
    return corners.clip(0, [size[1], size[0]]).ravel().tolist()


def draw(root: Path, count: int, masks: int, size: tuple[int, int]) -> None:
    """A data set whose photographs are all alike, and the masks of each."""
    from PIL import Image
    from pycocotools import mask as coco

    (root / "drawn.toml").write_text(MANIFEST)
    (root / "recipe.toml").write_text('manifest = "drawn.toml"\n')
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    photograph = Image.effect_noise(size[::-1], 60).convert("RGB")
    photograph.save(root / "images/000.jpg")
    content = (root / "images/000.jpg").read_bytes()
    for number in range(count):
        random, records = np.random.default_rng(number), []
        (root / f"images/{number:03}.jpg").write_bytes(content)
        while len(records) < masks:
            (rle,) = coco.frPyObjects([outline(random, size)], *size)
            record = {
                "segmentation": {"size": list(size), "counts": rle["counts"].decode()},
                "area": int(coco.area(rle)),
                "bbox": coco.toBbox(rle).tolist(),
                "predicted_iou": float(random.uniform(0.88, 1.02)),
                "point_coords": [[0.0, 0.0]],
                "stability_score": float(random.uniform(0.95, 1)),
                "crop_box": [0, 0, size[1], size[0]],
            }
            records += [record] if record["area"] else []
        (root / f"masks/{number:03}.json").write_text(json.dumps(records))


def measure(root: Path) -> dict:
    """Imports the masks in this process; memory in MiB, seconds an image."""
    import scipy.ndimage
    import torch
    import zarr

    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ProposalSettings
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.interop.masks_sam import SamMasks
    from vitp_pipeline.stages import convert_masks
    from vitp_pipeline.stages.import_proposals import import_proposals

    torch.zeros(1), scipy.ndimage, zarr  # loaded before the start is looked at
    recipe, spent = load_recipe(root / "recipe.toml"), {"read": 0.0, "points": 0.0}

    def timed(name, function):
        def call(*given):
            began = time.process_time()
            try:
                return function(*given)
            finally:
                spent[name] += time.process_time() - began

        return call

    start, began, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    settings = ProposalSettings(config="(imported)")
    read, points = timed("read", SamMasks.read), timed("points", convert_masks._points)
    with patch.object(SamMasks, "read", read), patch.object(convert_masks, "_points", points):
        outcome = import_proposals(recipe, settings, "sam", root / "masks", root, root / "run", ShardChoice())
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert not outcome.failed, outcome.failed
    count = outcome.made
    stored = sum(file.stat().st_size for file in (root / "run").rglob("*.zip"))
    return {
        "images": count,
        "start": start,
        "peak": _memory("VmHWM"),
        "seconds": seconds / count,
        "cpu": cpu / count,
        **{name: value / count for name, value in spent.items()},
        "store": (cpu - sum(spent.values())) / count,
        "json_kib": sum(file.stat().st_size for file in (root / "masks").iterdir()) / count / 1024,
        "stored_kib": stored / count / 1024,
    }


def _memory(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status: this benchmark needs Linux")


def table(found: dict) -> str:
    """Markdown."""
    head = "| images | start, MiB | peak, MiB | s an image | CPU s | read | points | store | JSON, KiB | stored, KiB |"
    values = [f"{found['start']:.0f}", f"{found['peak']:.0f}"]
    values += [f"{found[name]:.2f}" for name in ("seconds", "cpu", "read", "points", "store")]
    values += [f"{found[name]:.0f}" for name in ("json_kib", "stored_kib")]
    return "\n".join([head, "|" + "---:|" * 10, f"| {found['images']} | {' | '.join(values)} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--masks", type=int, default=100, help="of an image")
    parser.add_argument("--size", type=int, nargs=2, default=[3000, 4000], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), a.images, a.masks, (a.size[0], a.size[1]))
        command = [sys.executable, "-m", "benchmarks.import_masks", "--measure", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    if a.json:
        a.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
