"""Point prompts beside mask prompts (Table 6): the same features of a frozen backbone, on held-out images.

    python tools/prompts.py coco-sample --data-root data/coco --out runs/prompts --hold-out 25

Every prompt and seed is a training of its own; every seed holds out other images. Their ground-truth regions are then
classified: by the innermost pixel, by 16 random pixels, or by a mask. With `lda` that is a mask token which passes the
frozen blocks and sees the patches inside (`mask_form = "attention"`), and every head is in closed form. With `gradient`
it is MAFT's: four new blocks behind the frozen ones; the points' head is linear. Trained classifiers are not trained
again. Writes docs/measured/prompts-RECIPE.json and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from vitp_pipeline.classifier.mask_prompt import mask_logits
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.training.data import read_pair
from vitp_pipeline.classifier.training.validation import LEAST_REGION
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import IGNORE, Dataset
from vitp_pipeline.stages.train_classifier import split_samples, train_classifier

KEYS = {
    "one point": ("point", "held_out_regions_center"),
    "16 points": ("point", "held_out_regions_multi"),
    "mask": ("mask", "held_out_accuracy"),
    "mask of one patch": ("mask", "one_patch"),
}
"""Prompt and figure of the held-out regions, by row."""

FITS = {
    "lda": {"norm": "none", "fit": "lda", "class_prior": 1.0, "epochs": 1},
    "gradient": {
        "norm": "batch",
        "fit": "gradient",
        "class_prior": 0.0,
        "epochs": 8,
        "optimizer": "adamw",
        "backbone_lr": 0.0,
        "weight_decay": 0.1,
        "batch_size": 4,
    },
}
MAFT = {"mask_form": "maft", "maft_layers": 4, "feature_layers": (), "lr": 1e-3}


def settings_of(fit: str, prompt: str, depth: int, seed: int, a: argparse.Namespace, recipe: Recipe) -> TrainSettings:
    """Give the settings of a training; with gradients a mask prompt is MAFT's, in new blocks behind the frozen ones."""
    own: dict[str, Any] = {"lr": 1e-2} if fit == "gradient" else {}
    if fit == "gradient" and prompt == "mask":
        own = MAFT
    given = {
        "name": f"{fit}-{prompt}-{depth}-{seed}",
        "prompt": prompt,
        "point_token": "sampled",
        "image_size": tuple(a.size),
        "depth": depth,
        "feature_layers": (depth,),
        "points_per_image": a.points if prompt == "point" else a.masks,
        "hold_out": a.hold_out,
        "hold_out_fold": seed,
        "steps": 0,
        "precision": "float32",
        "seed": seed,
    }
    return recipe.stage(TrainSettings, **{**given, **FITS[fit], **own})


@torch.inference_mode()
def right_by_one_patch(file: Path, recipe: Recipe, settings: TrainSettings, data_root: Path) -> float:
    """Classify the held-out regions by masks of a single patch, that of the innermost pixel; the share that is right.

    It is what is left of a mask prompt without the region: the same network, looking at one place.
    """
    model = load_classifier(file).eval()
    dataset = Dataset(recipe.manifest, data_root, settings.split)
    right = []
    for sample in split_samples(dataset.samples, settings.hold_out, settings.hold_out_fold)[1]:
        image, labels = read_pair(dataset, sample)
        values, counts = np.unique(labels[labels != IGNORE], return_counts=True)
        regions = values[counts >= LEAST_REGION * labels.size]
        coverage = np.zeros((len(regions), *model.grid), np.float32)
        for mask, region in zip(coverage, regions, strict=True):
            depth = distance_transform_edt(np.pad(labels == region, 1))[1:-1, 1:-1]
            row, col = np.unravel_index(depth.argmax(), depth.shape)
            mask[row * mask.shape[0] // len(labels), col * mask.shape[1] // labels.shape[1]] = 1
        if len(regions):
            pixels = torch.from_numpy(prepare_image(image, model.image_size))[None]
            given = mask_logits(model, pixels, torch.from_numpy(coverage).flatten(1)[None], precision="float32")[0]
            right += (given.argmax(-1).numpy() == regions).tolist()
    return float(np.mean(right))


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing; return the shares of regions classified right, by fit and depth, row and seed."""
    recipe = load_recipe(a.recipe)
    shares: dict[str, dict[str, list[float]]] = {}
    for seed in range(a.seeds):
        for head in a.heads:
            fit, depth = head.split("-")
            of_prompt = {}
            for prompt in ("point", "mask"):
                settings = settings_of(fit, prompt, int(depth), seed, a, recipe)
                file = train_classifier(recipe, settings, a.data_root, a.out)
                of_prompt[prompt] = json.loads((file.parent / "validation.json").read_text(encoding="utf-8"))
            of_prompt["mask"]["one_patch"] = right_by_one_patch(file, recipe, settings, a.data_root)
            for row, (prompt, key) in KEYS.items():
                shares.setdefault(head, {}).setdefault(row, []).append(round(of_prompt[prompt][key], 4))
    return {"recipe": a.recipe, "size": a.size, "hold_out": a.hold_out, "seeds": a.seeds, "regions_right": shares}


def table(found: dict[str, Any]) -> str:
    """Write Markdown: means and standard deviations over the seeds."""
    lines = [f"| head | blocks | {' | '.join(KEYS)} |", f"|---|---:|{'---:|' * len(KEYS)}"]
    for key, rows in found["regions_right"].items():
        figures = (f"{100 * np.mean(rows[row]):.1f} ± {100 * np.std(rows[row]):.1f}" for row in KEYS)
        lines.append(f"| {' | '.join(key.split('-'))} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", nargs="+", default=["lda-8", "lda-12", "gradient-8"], help="how trained, on block")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=[126, 168], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--points", type=int, default=80, help="of an image, in training")
    parser.add_argument("--masks", type=int, default=30, help="of an image, in training")
    parser.add_argument("--hold-out", type=int, default=25, help="images, others for every seed")
    parser.add_argument("--docs", type=Path, default=Path("docs/measured"))
    a = parser.parse_args()
    found = measure(a)
    target = a.docs / f"prompts-{Path(a.recipe).stem}.json"
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
