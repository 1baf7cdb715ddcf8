"""Time and memory of `vitp predict --masks` by the size of the photograph and the number of masks.

    python -m benchmarks.predict_masks --megapixels 3 12 --masks 100 --json docs/measured/predict-masks.json

Drawn are photographs of noise and nested discs with waves in their outlines, large and small ones, stored as COCO's
results with scores. The classifier is a ViT-S/16 of 448×448 pixels and 150 classes with random weights. Semantic and
panoptic maps and instances are written, with overlays. The command runs in a process of its own; its peak (VmHWM)
and its processor time have the libraries and the classifier in them. Dense, masks would take 4 bytes a pixel and mask.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CLASSES = 150
TASKS = ("semantic", "panoptic", "instance")
PROGRAM = """
import sys
from vitp_pipeline.cli.main import main
try:
    main()
finally:
    lines = open("/proc/self/status").read().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def draw_mask(rng: np.random.Generator, size: tuple[int, int], radius: float) -> np.ndarray:
    """Draw a disc with waves in its outline, (H, W) bool."""
    mask = np.zeros(size, bool)
    row, column = rng.uniform(0, size)
    top, left = max(0, int(row - 1.4 * radius)), max(0, int(column - 1.4 * radius))
    part = mask[top : int(row + 1.4 * radius) + 1, left : int(column + 1.4 * radius) + 1]
    rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
    down, across = rows + top - row, columns + left - column
    waves = 1 + 0.2 * np.sin(rng.integers(3, 20) * np.arctan2(down, across) + rng.uniform(0, 6))
    part[...] = np.hypot(down, across) < radius * waves
    return mask


def draw(root: Path, megapixels: float, masks: int, images: int) -> None:
    """Write photographs, their masks, a manifest and a classifier."""
    import torch
    from PIL import Image

    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.model_config import ModelConfig
    from vitp_pipeline.classifier.weights import save_classifier
    from vitp_pipeline.decoding.rle import encode_mask

    rng, height = np.random.default_rng(0), round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size, results = (height, round(height * 4 / 3)), []
    (root / "photos").mkdir()
    for image in range(images):
        noise = rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3), np.uint8)
        Image.fromarray(noise).resize(size[::-1]).save(root / f"photos/{image}.jpg")
        for _ in range(masks):
            radius = size[0] * 0.5 * 10 ** rng.uniform(-1.5, 0)
            rle = encode_mask(draw_mask(rng, size, radius))
            segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
            record = {"image_id": str(image), "category_id": int(rng.integers(CLASSES)), "score": rng.uniform(0.6, 1)}
            results.append({**record, "segmentation": segmentation})
    (root / "masks.json").write_text(json.dumps(results))
    names = [f"class {k}" for k in range(CLASSES)]
    classes = [
        f'  {{ name = "{name}", label = {k}, thing = {str(k % 2 > 0).lower()} }},' for k, name in enumerate(names)
    ]
    head = ['name = "drawn"', "classes = [", *classes, "]", "[labels]", 'kind = "semantic-png"', "ignore = [255]"]
    (root / "drawn.toml").write_text("\n".join(head) + '\n[splits.val]\nimages = "*.jpg"\nlabels = "{stem}.png"\n')
    torch.manual_seed(0)
    config = ModelConfig(backbone="vit_small_patch16_224", classes=tuple(names), image_size=(448, 448))
    save_classifier(PointViT(config).eval(), root / "model.safetensors", {})


def measure(root: Path) -> dict[str, float]:
    """Run the command; MiB at its peak, and seconds of processor time."""
    words = ["predict", "photos", "--masks", "masks.json", "--from", "coco", "--recipe", "drawn.toml"]
    words += ["--classifier", "model.safetensors", "--out", "found", "--set", "object_threshold=0.0"]
    words += [word for task in TASKS for word in ("--task", task)]
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - began.ru_utime - began.ru_stime
    return {"seconds": round(seconds, 1), "peak": round(int(done.stdout.split()[-1]) / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[3, 12])
    parser.add_argument("--masks", type=int, nargs="+", default=[100])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    a = parser.parse_args()
    figures = []
    print("| megapixels | masks | dense, MiB | peak, MiB | processor seconds an image |\n|---:|---:|---:|---:|---:|")
    for megapixels in a.megapixels:
        for masks in a.masks:
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder), megapixels, masks, a.images)
                found = {"megapixels": megapixels, "masks": masks, "images": a.images, **measure(Path(folder))}
            figures.append(found)
            dense, each = 4e6 * megapixels * masks / 2**20, found["seconds"] / a.images
            print(f"| {megapixels:g} | {masks} | {dense:,.0f} | {found['peak']:,} | {each:.0f} |", flush=True)
    if a.json:
        a.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
