"""Chooses settings by the training images alone: cross-validated mIoU with the generator's own masks.

    python tools/cross_validate.py coco-sample --data-root ../shared/data/coco --out runs/choosing --set class_prior=1.0

Every fold trains a classifier without a fifth of the training images, and names the generator's masks of those. Printed
are figures over all folds together, by point policy and temperature. The generator has seen these images, the
classifier has not: compare the rows of a column, and read α = 1, where the generator's names do not count.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from vitp_pipeline.artifacts.proposals import ProposalRecord, open_proposals, points_of
from vitp_pipeline.assemble.labels import majority_label
from vitp_pipeline.assemble.semantic import semantic_label_maps
from vitp_pipeline.classifier.pixels import prepare_image
from vitp_pipeline.classifier.predict import mask_logits_of_points, point_logits
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.datasets import IGNORE, Dataset
from vitp_pipeline.fingerprint import fingerprint, identity_of
from vitp_pipeline.fusion import fuse
from vitp_pipeline.geometry import normalise_points
from vitp_pipeline.metrics.semantic import Confusion
from vitp_pipeline.recipe import ClassifySettings, ProposalSettings, TrainSettings, load_recipe, parse_changes
from vitp_pipeline.shard import ShardChoice
from vitp_pipeline.stages.proposals import generate_proposals
from vitp_pipeline.stages.train import split_samples, train_classifier

FOLDS = 5
ALPHAS = (0.0, 0.4, 1.0)


class Tally:
    """Figures of one policy and temperature, at each of ALPHAS."""

    def __init__(self, classes: int) -> None:
        self.maps = [Confusion(classes) for _ in ALPHAS]
        self.right, self.matched = np.zeros(len(ALPHAS), int), 0

    def update(self, record: ProposalRecord, scores: torch.Tensor, truth: np.ndarray) -> None:
        """scores: (Q, K) logits of the masks; truth: (H, W) class indices."""
        masks, logits = torch.from_numpy(record.masks).float(), torch.from_numpy(record.class_logits)
        kept = record.kept.tolist()
        probs = torch.stack([fuse(logits, scores, alpha)[0] for alpha in ALPHAS])[:, kept]
        maps = semantic_label_maps(masks, probs, record.view, record.protocol)
        for state, labels in zip(self.maps, maps, strict=True):
            state.update(labels, truth)
        label = majority_label(masks, record.view, truth)
        matched = (1 - logits.softmax(1)[kept, -1].numpy() > 0.5) & (label != IGNORE)
        self.right += (probs.argmax(2).numpy() == label)[:, matched].sum(1)
        self.matched += int(matched.sum())

    def cells(self) -> list[str]:
        named = [100 * n / self.matched for n in self.right]
        return [f"{100 * state.miou():.2f} / {right:.1f}" for state, right in zip(self.maps, named, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="key of [train-classifier]")
    parser.add_argument("--points", nargs="+", default=["max", "spread"])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 0.4, 0.2, 0.1, 0.05])
    a = parser.parse_args()

    recipe, everything = load_recipe(a.recipe), ShardChoice()
    changes = parse_changes(a.set)
    split = recipe.stage(TrainSettings).split
    generate_proposals(recipe, recipe.stage(ProposalSettings, split=split), a.data_root, a.out, everything)
    records = {record.image_id: record for record in open_proposals(a.out)}
    dataset = Dataset(recipe.manifest, a.data_root, split)
    hold_out = -(-len(dataset.samples) // FOLDS)
    tallies = {(p, t): Tally(len(recipe.manifest.classes)) for p in a.points for t in a.temperatures}
    for fold in range(FOLDS):
        settings = recipe.stage(TrainSettings, **changes, hold_out=hold_out, hold_out_fold=fold)
        name = fingerprint(identity_of(settings))[:12]
        model = load_classifier(
            train_classifier(
                recipe,
                recipe.stage(TrainSettings, **changes, hold_out=hold_out, hold_out_fold=fold, name=name),
                a.data_root,
                a.out,
            )
        )
        classify = recipe.stage(ClassifySettings)
        for sample in split_samples(dataset.samples, hold_out, fold)[1]:
            if (record := records.get(sample.image_id)) is None:
                continue  # its proposals failed; said above
            truth = dataset.read_semantic(sample)
            image = torch.from_numpy(prepare_image(dataset.read_image(sample), model.image_size))[None]
            for policy in a.points:
                points = points_of(record, policy)
                where = torch.from_numpy(normalise_points(points, record.view.original))[None]
                logits = point_logits(model, image, where, classify.flip, classify.precision)
                for temperature in a.temperatures:
                    scores = mask_logits_of_points(logits, len(points) // len(record.class_logits), temperature)
                    tallies[policy, temperature].update(record, scores[0], truth)
    print(
        f"mIoU / masks named right, {len(records)} images in {FOLDS} folds; {' '.join(a.set or ['as in the recipe'])}"
    )
    print("| points | temperature | " + " | ".join(f"α = {alpha:g}" for alpha in ALPHAS) + " |")
    print("|---|---:|" + "---:|" * len(ALPHAS))
    for (policy, temperature), tally in tallies.items():
        print(f"| {policy} | {temperature:g} | " + " | ".join(tally.cells()) + " |")


if __name__ == "__main__":
    main()
