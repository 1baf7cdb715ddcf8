"""Fits α per class, or by mask score, to held-out training images; never to val.

    python tools/fit_alpha.py coco-sample --data-root ../shared/data/coco --out runs/choosing --write alphas.json

A classifier is trained without each fold of the training images (as in cross_validate.py, whose runs are used where
they are there). The masks of those images that likely are something (1 − v > 0.5) and cover labelled pixels are named
by the majority of the ground truth inside; α is fitted to make these names likely, and pulled towards the recipe's
`alpha` with a weight that is chosen by cross-validation over the same folds. Printed are, of masks of folds that a fit
has not seen, the mean of −log p(name) and the share named right; the weight with the least loss is then used on all
masks. When none beats the recipe's α alone, this is said and nothing is written.

The generator has seen the training images: its names are better on them than on others, so the fit trusts it too much.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cross_validate import FOLDS, HeldOut, add_arguments, held_out_images

from vitp_pipeline.alphas import NamedMasks, fit_class_alphas, fit_score_alphas, write_alphas
from vitp_pipeline.artifacts.proposals import POINT_POLICIES
from vitp_pipeline.assemble.labels import majority_label
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.recipe import ClassifySettings, EvaluateSettings, load_recipe, parse_changes

WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def named_masks(images: list[HeldOut], policy: str, temperature: float, average: str) -> tuple[NamedMasks, np.ndarray]:
    """The matched masks of all images, and their folds."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    folds = []
    for image in images:
        record = image.record
        logits = torch.from_numpy(record.class_logits)[record.kept.tolist()]
        scores = image.scores(policy, temperature, average)[record.kept.tolist()]
        label = majority_label(torch.from_numpy(record.masks).float(), record.view, image.truth)
        present = 1 - logits.softmax(1)[:, -1].numpy()
        matched = (present > 0.5) & (label != IGNORE)
        found = (logits[:, :-1].log_softmax(1).numpy(), scores.log_softmax(1).numpy(), present, label)
        for column, values in zip(columns, found, strict=True):
            column.append(values[matched])
        folds.append(np.full(int(matched.sum()), image.fold))
    return NamedMasks(*(np.concatenate(column) for column in columns)), np.concatenate(folds)


def cross_validated(
    masks: NamedMasks, folds: np.ndarray, fit: Callable[[NamedMasks], Callable[[NamedMasks], float | np.ndarray]]
) -> tuple[float, float]:
    """(loss, share named right) over all folds, each with what `fit` made of the others."""
    loss = right = 0.0
    for fold in range(FOLDS):
        unseen = masks[folds == fold]
        if len(unseen):
            alpha = fit(masks[folds != fold])(unseen)
            loss, right = loss + len(unseen) * unseen.loss(alpha), right + len(unseen) * unseen.right(alpha)
    return loss / len(masks), right / len(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--points", default="max", choices=POINT_POLICIES)
    parser.add_argument("--by-score", action="store_true", help="fit alpha_low and alpha_high instead")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where α per class goes, for `alpha_classes`")
    a = parser.parse_args()

    recipe = load_recipe(a.recipe)
    alpha, classify = recipe.stage(EvaluateSettings).alpha, recipe.stage(ClassifySettings)
    images = list(held_out_images(recipe, parse_changes(a.set), [a.points], a.data_root, a.out))
    masks, folds = named_masks(images, a.points, classify.temperature, classify.average)

    def at(weight: float) -> Callable:
        def by_class(known: NamedMasks) -> Callable:
            values = fit_class_alphas(known, alpha, weight)
            return lambda unseen: values

        def by_score(known: NamedMasks) -> Callable:
            low, high = fit_score_alphas(known, alpha, weight)
            return lambda unseen: (low + (high - low) * unseen.present)[:, None]

        return by_score if a.by_score else by_class

    found = {weight: cross_validated(masks, folds, at(weight)) for weight in WEIGHTS}
    plain = masks.loss(alpha), masks.right(alpha)
    print(f"{len(masks)} masks of {len(images)} images in {FOLDS} folds, points = {a.points}")
    print("| weight of the recipe's α | −log p | named right |\n|---:|---:|---:|")
    for name, (loss, right) in [*((f"{w:g}", f) for w, f in found.items()), (f"∞ (α = {alpha:g})", plain)]:
        print(f"| {name} | {loss:.4f} | {100 * right:.2f} |")
    weight = min(found, key=lambda w: found[w][0])
    if found[weight][0] >= plain[0]:
        print(f"No fit beats α = {alpha:g} for all: nothing to switch on")
        return
    if a.by_score:
        low, high = fit_score_alphas(masks, alpha, weight)
        print(f"alpha_low = {low:.4f}\nalpha_high = {high:.4f}")
        return
    values = dict(zip(recipe.manifest.class_names, fit_class_alphas(masks, alpha, weight), strict=True))
    moved = sorted(values, key=lambda name: -abs(values[name] - alpha))[:10]
    print("farthest from the recipe's: " + ", ".join(f"{name} {values[name]:.2f}" for name in moved))
    if a.write:
        write_alphas(a.write, values)
        print(f"written to {a.write}")


if __name__ == "__main__":
    main()
