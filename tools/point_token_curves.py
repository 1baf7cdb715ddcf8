"""Point tokens from scratch: accuracy at held-out points over the number of training images, on drawn scenes.

    python tools/point_token_curves.py

Two small ViTs, one with a position table and one with rotary positions, each with every point token and with the same
steps, points and learning rate for any number of images. Every cell is saved once trained, so the command can be
stopped and resumed. Writes docs/measured/point-tokens.json, docs/images/point-tokens.png and the table of
docs/backbones.md; with --page only the last two. About a minute a cell on one core, 70 minutes for all 72.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.training.optim import make_optimizer, make_schedule, parameter_groups
from vitp_pipeline.classifier.training.sampling import sample_points
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.demo.scenes import CATEGORIES, SIZE, draw_scene
from vitp_pipeline.geometry import normalize_points

ARGS = {"embed_dim": 96, "depth": 4, "num_heads": 4, "patch_size": 16}
BACKBONES = {
    "table": ("vit_tiny_patch16_224", ARGS),
    "rotary": ("vit_small_patch16_rope_224", {**ARGS, "init_values": 1.0}),  # its own 1e-5 is for long trainings
}
TOKENS = ("linear", "patch", "rotary", "sampled")
BEGIN, END = "<!-- made by `python tools/point_token_curves.py` -->\n", "<!-- end -->\n"
SETTINGS = TrainSettings(optimizer="adamw", lr=2e-3, weight_decay=0.05)


@cache
def scene(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image (3, H, W) uint8 and its labels (H, W) int16."""
    drawn = draw_scene(0, split, index)
    labels = np.full(SIZE, IGNORE, np.int16)
    for segment in drawn.segments:
        labels[drawn.ids == segment.id] = segment.category.id - 1
    return np.ascontiguousarray(drawn.image.transpose(2, 0, 1)), labels


def batch_of(split: str, indices: Any, points: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images (B, 3, H, W) uint8, points (B, N, 2) float32 and their classes (B, N)."""
    images, places, classes = [], [], []
    for index in indices:
        image, labels = scene(split, int(index))
        where, labeled = sample_points(labels, points, rng) or (np.zeros((points, 2), int), np.full(points, IGNORE))
        images.append(image)
        places.append(normalize_points(where, SIZE))
        classes.append(labeled)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(places)), torch.from_numpy(np.stack(classes))


def train(backbone: str, token: str, images: int, seed: int, options: argparse.Namespace) -> PointViT:
    """Train a classifier from scratch, `options.steps` steps on the first `images` scenes."""
    name, args = BACKBONES[backbone]
    torch.manual_seed(seed)
    classes = tuple(category.name for category in CATEGORIES)
    model = PointViT(ModelConfig(name, classes, SIZE, json.dumps(args), point_token=cast(Any, token)))
    optimizer = make_optimizer(parameter_groups(model, SETTINGS), SETTINGS)
    schedule = make_schedule(optimizer, SETTINGS, options.steps)
    rng = np.random.default_rng([seed, images])
    model.train()
    for step in range(options.steps):
        chosen = rng.choice(images, min(options.batch_size, images), replace=False)
        pictures, points, classes_of = batch_of("train", chosen, options.points, rng)
        schedule.step_update(step)
        optimizer.zero_grad(set_to_none=True)
        logits = model(model.normalize(pictures), points)
        F.cross_entropy(logits.flatten(0, 1), classes_of.flatten(), ignore_index=IGNORE).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: PointViT, held_out: int) -> float:
    """Share of right classes at 100 points of each held-out scene, drawn evenly over its classes."""
    rng, right = np.random.default_rng(1), []
    for first in range(0, held_out, 10):
        pictures, points, classes = batch_of("val", range(first, min(first + 10, held_out)), 100, rng)
        right.append((model(model.normalize(pictures), points).argmax(-1) == classes)[classes != IGNORE].float())
    return torch.cat(right).mean().item()


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, int, int]]:
    for seed in range(options.seeds):  # so that complete comparisons are available early
        for images in options.images:
            for backbone in BACKBONES:
                for token in TOKENS:
                    yield backbone, token, images, seed


def curves(found: dict[str, Any]) -> dict[tuple[str, str], dict[int, list[float]]]:
    """Group accuracies by backbone and token, then by images."""
    grouped: dict[tuple[str, str], dict[int, list[float]]] = {}
    for key, value in found["accuracy"].items():
        backbone, token, images, _ = key.split()
        grouped.setdefault((backbone, token), {}).setdefault(int(images), []).append(value)
    return {pair: dict(sorted(by_images.items())) for pair, by_images in grouped.items()}


def table(found: dict[str, Any]) -> str:
    """Write Markdown: means over the seeds, with the standard deviation."""
    grouped = curves(found)
    images = sorted({count for by_images in grouped.values() for count in by_images})
    lines = [
        f"| positions | point token | {' | '.join(f'{count} images' for count in images)} |",
        f"|---|---|{'---:|' * len(images)}",
    ]
    for (backbone, token), by_images in grouped.items():
        shown = (by_images.get(count, []) for count in images)
        figures = (f"{100 * np.mean(v):.1f} ± {100 * np.std(v):.1f}" if v else "–" for v in shown)
        lines.append(f"| {backbone} | `{token}` | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy over training images, a panel for each backbone, a band from the worst to the best seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FormatStrFormatter

    figure, panels = plt.subplots(1, len(BACKBONES), figsize=(9, 3.8), dpi=120, sharey=True)
    for panel, backbone in zip(panels, BACKBONES, strict=True):
        for (of, token), by_images in curves(found).items():
            if of == backbone:
                xs, ys = list(by_images), [[100 * v for v in values] for values in by_images.values()]
                (line,) = panel.plot(xs, [np.mean(v) for v in ys], marker="o", label=token)
                panel.fill_between(xs, [min(v) for v in ys], [max(v) for v in ys], color=line.get_color(), alpha=0.15)
        panel.set(title=f"positions: {backbone}", xlabel="training images", xscale="log")
        panel.set_xticks(sorted({x for by_images in curves(found).values() for x in by_images}))
        panel.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out points classified right [%]")
    panels[-1].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write_page(found: dict[str, Any], page: Path, picture: Path) -> None:
    """Put the table and the picture between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    shown = f"\n![accuracy over training images](images/{picture.name})\n\n{table(found)}"
    page.write_text(before + BEGIN + shown + END + rest.split(END)[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[25, 100, 400])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--points", type=int, default=48, help="of an image and step")
    parser.add_argument("--held-out", type=int, default=100, help="scenes")
    parser.add_argument("--json", type=Path, default=Path("docs/measured/point-tokens.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/point-tokens.png"))
    parser.add_argument("--docs", type=Path, default=Path("docs/backbones.md"))
    parser.add_argument("--page", action="store_true", help="only draw and write existing results")
    options = parser.parse_args()
    budget = {key: getattr(options, key) for key in ("steps", "batch_size", "points", "held_out")}
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
    if options.page:
        budget = known["budget"]
    elif known.get("budget", budget) != budget:
        parser.error(f"{options.json} was made with {known['budget']}: give the same, or another --json")
    found: dict[str, Any] = {"budget": budget, "accuracy": known.get("accuracy", {})}
    for backbone, token, images, seed in () if options.page else cells(options):
        key = f"{backbone} {token} {images} {seed}"
        if key not in found["accuracy"]:
            began = time.perf_counter()
            model = train(backbone, token, images, seed, options)
            found["accuracy"][key] = round(accuracy(model, options.held_out), 4)
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"{key}: {found['accuracy'][key]:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    draw(found, options.plot)
    write_page(found, options.docs, options.plot)
    print(table(found))


if __name__ == "__main__":
    main()
