"""What each rule of `overlap` in [evaluate] gives on training images that the classifier has not seen.

    DATA=../shared/data/camvid
    python tools/class_free_masks.py camvid --data-root $DATA --split train --hold-out 184 --limit 40 --out masks/held
    python tools/overlap_rules.py camvid --data-root $DATA --hold-out 184 --masks masks/held --out runs/overlap

Imports the masks of held-out training images, trains the recipe's classifier without them, and prints for each rule
mIoU, and PQ where labels have segments, of the classifier and of both upper bounds. Without --masks the recipe's own
generator makes the masks; it was trained on these images, so compare rows of its table alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from vitp_pipeline.artifacts.proposals import ProposalRecord, ProposalStore, open_proposals, points_of
from vitp_pipeline.classifier.inference import average_of, mask_logits_of_points, point_logits
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.choices import Overlap
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.geometry import normalize_points
from vitp_pipeline.metrics.panoptic import PanopticQuality
from vitp_pipeline.metrics.semantic import Confusion
from vitp_pipeline.postprocess.mask_labels import label_at_points, majority_label
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.stages.import_proposals import import_proposals
from vitp_pipeline.stages.train_classifier import split_samples, train_classifier

VARIANTS = ("classifier", "upper bound (point labels)", "upper bound (mask labels)")


class Tally:
    """Figures of one rule, of each of VARIANTS."""

    def __init__(self, segmenter: Segmenter, panoptic: bool) -> None:
        self.segmenter, things = segmenter, segmenter.things
        self.maps = [Confusion(len(things)) for _ in VARIANTS]
        self.segments = [PanopticQuality(len(things), things) for _ in VARIANTS] if panoptic else []

    def update(self, record: ProposalRecord, scores: np.ndarray, dataset: Dataset) -> None:
        """scores: (Q, K) logits of the masks."""
        sample = dataset.sample(record.image_id)
        truth = dataset.read_semantic(sample)
        by_mask = np.full(len(record.class_logits), -1, np.int64)
        by_mask[record.kept] = majority_label(torch.from_numpy(record.masks), record.view, truth)
        labels = label_at_points(truth, points_of(record, "max")), by_mask
        view = self.segmenter.score(record, scores, (1.0,), labels)
        for state, found in zip(self.maps, self.segmenter.semantic([view]), strict=True):
            state.update(found, truth)
        if self.segments:
            true = dataset.read_panoptic(sample)
            for quality, (ids, parts) in zip(self.segments, self.segmenter.panoptic(view), strict=True):
                quality.update(ids, parts, *true)

    def figures(self) -> dict[str, list[float]]:
        """Percentages of each of VARIANTS, by metric."""
        found = {"mIoU": [round(100 * state.miou(), 2) for state in self.maps]}
        if self.segments:
            found["PQ"] = [round(100 * quality.summary()["all"].pq, 2) for quality in self.segments]
        return found


def held_out_scores(
    recipe: Recipe, hold_out: int, proposals: ProposalStore, data_root: Path, out: Path
) -> Iterator[tuple[ProposalRecord, np.ndarray, Dataset]]:
    """Classify the masks of the held-out training images by a classifier that was trained without these."""
    settings = recipe.stage(TrainSettings, hold_out=hold_out)
    model = load_classifier(train_classifier(recipe, settings, data_root, out))
    dataset, chosen = Dataset(recipe.manifest, data_root, settings.split), recipe.stage(ClassifySettings)
    held = {sample.image_id for sample in split_samples(dataset.samples, hold_out)[1]}
    for record in proposals:
        if record.image_id not in held:
            continue
        image = prepare_image(dataset.read_image(dataset.sample(record.image_id)), model.image_size)
        where = torch.from_numpy(normalize_points(points_of(record, chosen.points), record.view.original))[None]
        logits = point_logits(model, torch.from_numpy(image)[None], where, chosen.flip, chosen.precision)
        per_mask = logits.shape[1] // max(1, len(record.class_logits))
        average = average_of(chosen.points, chosen.average)
        yield record, mask_logits_of_points(logits, per_mask, chosen.temperature, average)[0].numpy(), dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hold-out", type=int, required=True, help="training images to hold out")
    parser.add_argument("--masks", type=Path, help="folder of npz files; empty = the recipe's generator")
    parser.add_argument("--limit", type=int, default=0, help="of held-out images")
    parser.add_argument("--object-threshold", type=float, nargs="+", default=[0.8], help="of panoptic maps")
    parser.add_argument("--json", type=Path, help="file for the figures")
    a = parser.parse_args()
    recipe = load_recipe(a.recipe)
    stored = recipe.stage(ProposalSettings, split=recipe.stage(TrainSettings).split)
    if a.masks:
        import_proposals(recipe, stored, "npz", a.masks, a.data_root, a.out, ShardChoice())
    else:
        generate_proposals(recipe, stored, a.data_root, a.out, ShardChoice())
    base = recipe.stage(EvaluateSettings, device="cpu")
    panoptic = Dataset(recipe.manifest, a.data_root, stored.split).has_segments
    thresholds = a.object_threshold if panoptic else a.object_threshold[:1]
    tallies = {
        (rule, threshold): Tally(
            Segmenter(replace(base, overlap=rule, object_threshold=threshold), recipe.manifest.things), panoptic
        )
        for rule in get_args(Overlap)
        for threshold in thresholds
    }
    images = 0
    for record, scores, dataset in held_out_scores(recipe, a.hold_out, open_proposals(a.out), a.data_root, a.out):
        images += 1
        for tally in tallies.values():
            tally.update(record, scores, dataset)
        if images == a.limit:
            break
    rows = [{"overlap": r, "object_threshold": t, **tally.figures()} for (r, t), tally in tallies.items()]
    if a.json:
        a.json.write_text(json.dumps({"recipe": a.recipe, "images": images, "rows": rows}, indent=1) + "\n")
    metrics = ("mIoU", "PQ") if panoptic else ("mIoU",)
    print(f"{images} training images that the classifier has not seen")
    print("| overlap | object_threshold | " + " | ".join(f"{m}, {v}" for m in metrics for v in VARIANTS) + " |")
    print("|---|---:|" + "---:|" * len(metrics) * len(VARIANTS))
    for row in rows:
        cells = " | ".join(f"{figure:.2f}" for m in metrics for figure in row[m])
        print(f"| `{row['overlap']}` | {row['object_threshold']:g} | {cells} |")


if __name__ == "__main__":
    main()
