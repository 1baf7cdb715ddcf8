"""Choose settings on training images only: cross-validated mIoU with the generator's own masks.

    python tools/cross_validate.py coco-sample --data-root data/coco --out runs/choosing --set class_prior=1.0

Every fold trains a classifier without a fifth of the training images, and classifies the generator's masks of those.
Prints figures over all folds together, by point policy, average and temperature. The generator was trained on these
images, the classifier was not: compare rows of a column, and use α = 1, where the generator's classes do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from vitp_pipeline.artifacts.proposals import ProposalRecord, open_proposals, points_of
from vitp_pipeline.classifier.features.patch_features import PatchEncoder, feature_logits, reads_patches
from vitp_pipeline.classifier.features.source import FeatureSource
from vitp_pipeline.classifier.inference import average_of, mask_logits_of_points, point_logits
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.choices import Average
from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.generate_proposals import POINT_POLICIES
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import IGNORE, Dataset, Sample
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.geometry import normalize_points
from vitp_pipeline.metrics.semantic import Confusion
from vitp_pipeline.postprocess.mask_labels import majority_label
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.stages.features import Features
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.stages.train_classifier import split_samples, train_classifier
from vitp_pipeline.storage.fingerprint import fingerprint
from vitp_pipeline.storage.open_store import open_store

FOLDS = 5
ALPHAS = (0.0, 0.4, 1.0)


class Tally:
    """Figures of one policy and temperature, at each of ALPHAS."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.maps = [Confusion(len(segmenter.things)) for _ in ALPHAS]
        self.right, self.matched = np.zeros(len(ALPHAS), int), 0

    def update(self, record: ProposalRecord, scores: torch.Tensor, truth: np.ndarray) -> None:
        """scores: (Q, K) logits of the masks; truth: (H, W) class indices."""
        view = self.segmenter.score(record, scores.numpy(), ALPHAS)
        for state, labels in zip(self.maps, self.segmenter.semantic([view]), strict=True):
            state.update(labels, truth)
        label = majority_label(view.masks, record.view, truth)
        matched = (1 - view.no_object[0, view.kept].numpy() > 0.5) & (label != IGNORE)
        self.right += (view.probs[:, view.kept].argmax(2).numpy() == label)[:, matched].sum(1)
        self.matched += int(matched.sum())

    def cells(self) -> list[str]:
        accuracy = [100 * n / self.matched for n in self.right]
        return [f"{100 * state.miou():.2f} / {right:.1f}" for state, right in zip(self.maps, accuracy, strict=True)]


@dataclass
class HeldOut:
    """A training image held out in its fold. logits: (Q·n, K) of its points, by policy."""

    fold: int
    record: ProposalRecord
    truth: np.ndarray
    logits: dict[str, torch.Tensor]

    def scores(self, policy: str, temperature: float = 1.0, average: str = "auto") -> torch.Tensor:
        """(Q, K) logits of the masks."""
        points = self.logits[policy][None]
        per_mask = points.shape[1] // len(self.record.class_logits)
        return mask_logits_of_points(points, per_mask, temperature, average_of(policy, average))[0]


def held_out_images(
    recipe: Recipe, changes: dict[str, Any], policies: Sequence[str], data_root: Path, out: Path
) -> Iterator[HeldOut]:
    """Make the proposals of the training split and a classifier for every fold below `out`, where they are not there
    yet, and classify the points of every image by the classifier that was trained without it.
    """
    split = recipe.stage(TrainSettings).split
    stored = dict.fromkeys([*recipe.stage(ProposalSettings).points, *policies])
    settings = recipe.stage(ProposalSettings, split=split, points=tuple(stored))
    generate_proposals(recipe, settings, data_root, out, ShardChoice())
    proposals = open_proposals(out)
    proposals.require_one_view("cross-validated settings")
    records = {record.image_id: record for record in proposals}
    dataset = Dataset(recipe.manifest, data_root, split)
    hold_out = -(-len(dataset.samples) // FOLDS)
    for fold in range(FOLDS):
        folds = {"hold_out": hold_out, "hold_out_fold": fold}
        name = fingerprint(identity_of(recipe.stage(TrainSettings, **changes, **folds)))[:12]
        settings = recipe.stage(TrainSettings, **changes, **folds, name=name)
        model = load_classifier(train_classifier(recipe, settings, data_root, out))
        classify = recipe.stage(ClassifySettings)
        score = scorer(model, dataset, classify, out)
        for sample in split_samples(dataset.samples, hold_out, fold)[1]:
            if (record := records.get(sample.image_id)) is None:
                continue  # its proposals failed; said above
            points = {policy: normalize_points(points_of(record, policy), record.view.original) for policy in policies}
            logits = score(sample, {policy: torch.from_numpy(where) for policy, where in points.items()})
            yield HeldOut(fold, record, dataset.read_semantic(sample), logits)


def scorer(
    model: PointViT, dataset: Dataset, classify: ClassifySettings, out: Path
) -> Callable[[Sample, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return a function from an image and points (N, 2) by policy to their logits (N, K).

    Where points read the patches of the backbone, its features are those stored in the run, if it is frozen the same
    for all folds.
    """
    if not reads_patches(model):

        def of_image(sample: Sample, points: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            image = torch.from_numpy(prepare_image(dataset.read_image(sample), model.image_size))[None]
            given = (classify.flip, classify.precision)
            return {policy: point_logits(model, image, where[None], *given)[0] for policy, where in points.items()}

        return of_image
    encoder = PatchEncoder(model, classify.precision)
    images = (dataset.image_ids, 1, classify.flip, classify.feature_cache)
    features = Features(open_store(out), dataset, encoder, *images)
    features.make([0])
    source = FeatureSource(dataset, model.image_size, features.opened())

    def of_features(sample: Sample, points: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen = source.open(sample)[1]
        plain, *mirrored = (
            torch.from_numpy(encoder.features(seen(kind))) for kind in ((False, True) if classify.flip else (False,))
        )
        other = mirrored[0] if mirrored else None
        return {p: feature_logits(model, plain, where, other, classify.precision) for p, where in points.items()}

    return of_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--points", nargs="+", default=["max", "multi"], choices=list(POINT_POLICIES))
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 0.4, 0.2, 0.1, 0.05])
    parser.add_argument("--averages", nargs="+", default=["auto"], choices=get_args(Average))
    a = parser.parse_args()

    recipe = load_recipe(a.recipe)
    proposals = recipe.stage(ProposalSettings)
    rows = [(p, m, t) for p in a.points for m in averages(p, a.averages, proposals) for t in a.temperatures]
    segmenter = Segmenter(recipe.stage(EvaluateSettings, device="cpu"), recipe.manifest.things)
    tallies = {row: Tally(segmenter) for row in rows}
    images = 0
    for image in held_out_images(recipe, parse_changes(a.set), a.points, a.data_root, a.out):
        images += 1
        for (policy, average, temperature), tally in tallies.items():
            tally.update(image.record, image.scores(policy, temperature, average), image.truth)
    print(f"mIoU / mask accuracy, {images} images in {FOLDS} folds; {' '.join(a.set or ['as in the recipe'])}")
    print("| points | average | temperature | " + " | ".join(f"α = {alpha:g}" for alpha in ALPHAS) + " |")
    print("|---|---|---:|" + "---:|" * len(ALPHAS))
    for (policy, average, temperature), tally in tallies.items():
        print(f"| {policy} | {average} | {temperature:g} | " + " | ".join(tally.cells()) + " |")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every tool that works on held-out training images."""
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="key of [train-classifier]")


def averages(policy: str, asked: Sequence[str], settings: ProposalSettings) -> list[str]:
    """Averages to try for a policy, each once; a single point needs none."""
    if POINT_POLICIES[policy].per_mask(settings) == 1:
        return ["–"]
    return list(dict.fromkeys(average_of(policy, average) for average in asked))


if __name__ == "__main__":
    main()
