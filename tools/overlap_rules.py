"""What each rule of `overlap` in [evaluate] gives on training images that the classifier has not seen.

    DATA=data/coco
    python tools/class_free_masks.py coco-sample --data-root $DATA --split train --hold-out 50 --limit 20 --out masks
    python tools/overlap_rules.py coco-sample --data-root $DATA --hold-out 50 --masks masks --out runs/overlap

Trains the recipe's classifier without the held-out images, classifies the masks of those that have an npz file, each by
its deepest pixel, and prints for each rule the mIoU of the classifier and of both upper bounds, and PQ where labels
have segments. With --scores equal every mask has objectness 1. --every 3 makes maps of every third row and column.
--split val measures the images of another split: choose the rule before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.classifier.inference import point_logits
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.choices import Overlap
from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, TrainSettings
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.datasets.label_kinds.truth import SegmentMap
from vitp_pipeline.decoding.arrays import ArrayFile
from vitp_pipeline.geometry import View, normalize_points
from vitp_pipeline.interop.pseudo_logits import logits_of_binary, logits_of_objectness
from vitp_pipeline.metrics.panoptic import PanopticQuality
from vitp_pipeline.metrics.semantic import Confusion
from vitp_pipeline.postprocess.mask_labels import label_at_points, majority_label
from vitp_pipeline.postprocess.points import center_points
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.stages.train_classifier import split_samples, train_classifier

VARIANTS = ("classifier", "upper bound (point labels)", "upper bound (mask labels)")
RULES: tuple[Overlap, ...] = get_args(Overlap)


@dataclass(frozen=True)
class Classified:
    """The masks of an image and its ground truth, at every n-th row and column.

    Attributes:
        record: masks (Q, h, w).
        logits: (Q, K) of the classifier at the masks' points in the whole image.
        point_labels: (Q,) ground-truth class there.
        truth: (h, w) class indices. segments: ids (h, w) and what they are; None where labels have none.
    """

    record: ProposalRecord
    logits: np.ndarray
    point_labels: np.ndarray
    truth: np.ndarray
    segments: SegmentMap | None


class Tally:
    """Figures of one rule, of each of VARIANTS."""

    def __init__(self, segmenter: Segmenter, panoptic: bool) -> None:
        self.segmenter, things = segmenter, segmenter.things
        self.maps = [Confusion(len(things)) for _ in VARIANTS]
        self.segments = [PanopticQuality(len(things), things) for _ in VARIANTS] if panoptic else []

    def update(self, image: Classified) -> None:
        by_mask = majority_label(torch.from_numpy(image.record.masks), image.record.view, image.truth)
        view = self.segmenter.score(image.record, image.logits, (1.0,), (image.point_labels, by_mask))
        for state, found in zip(self.maps, self.segmenter.semantic([view]), strict=True):
            state.update(found, image.truth)
        if image.segments is not None:
            for quality, (ids, parts) in zip(self.segments, self.segmenter.panoptic(view), strict=True):
                quality.update(ids, parts, *image.segments)

    def figures(self) -> dict[str, list[float]]:
        """Percentages of each of VARIANTS, by metric."""
        found = {"mIoU": [round(100 * state.miou(), 2) for state in self.maps]}
        if self.segments:
            found["PQ"] = [round(100 * quality.summary()["all"].pq, 2) for quality in self.segments]
        return found


def classified(
    dataset: Dataset, samples: Sequence[Sample], masks: Path, model: PointViT, equal: bool, every: int
) -> Iterator[Classified]:
    """Classify the masks of all samples that have a file."""
    precision = ClassifySettings().precision
    for sample in samples:
        file = masks / f"{sample.image_id}.npz"
        if not file.exists():
            continue
        with ArrayFile(file) as arrays:
            found, scores = arrays.read("masks").astype(bool), arrays.read("scores")
        size = found.shape[1:]
        view = View(size, size, size, size)
        points = np.concatenate([center_points(torch.from_numpy(logits_of_binary(m[None])), view, "d2") for m in found])
        image = torch.from_numpy(prepare_image(dataset.read_image(sample), model.image_size))[None]
        where = torch.from_numpy(normalize_points(points, size))[None]
        logits = point_logits(model, image, where, False, precision)[0].numpy()
        truth = dataset.read_semantic(sample)
        segments = None
        if dataset.has_segments:
            ids, listed = dataset.read_panoptic(sample)
            segments = np.ascontiguousarray(ids[::every, ::every]), listed
        seen = logits_of_binary(found[:, ::every, ::every])
        class_logits = logits_of_objectness(np.ones(len(found)) if equal else scores, logits.shape[1])
        small = View(seen.shape[1:], seen.shape[1:], seen.shape[1:], seen.shape[1:])
        kept, labels = np.arange(len(found), dtype=np.int32), label_at_points(truth, points)
        record = ProposalRecord(
            sample.image_id, file.name, small, "d2", kept, 0.0, {}, class_logits=class_logits, masks=seen
        )
        yield Classified(record, logits, labels, np.ascontiguousarray(truth[::every, ::every]), segments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True, help="folder of npz files with masks and scores")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hold-out", type=int, required=True, help="training images to hold out")
    parser.add_argument("--split", default="", help="measure the images of this split; empty = the held-out ones")
    parser.add_argument("--limit", type=int, default=0, help="of held-out images")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--scores", choices=["own", "equal"], default="own")
    parser.add_argument("--every", type=int, default=1, help="rows and columns of the maps")
    parser.add_argument("--object-threshold", type=float, default=0.3, help="of panoptic maps")
    parser.add_argument("--overlap-threshold", type=float, default=0.3, help="of panoptic maps")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="key of [train-classifier]")
    parser.add_argument("--json", type=Path, help="file for the figures")
    a = parser.parse_args()
    recipe, things = load_recipe(a.recipe), load_recipe(a.recipe).manifest.things
    changes = parse_changes(a.set)
    training = recipe.stage(TrainSettings, **changes, hold_out=a.hold_out)
    model = load_classifier(train_classifier(recipe, training, a.data_root, a.out))
    dataset = Dataset(recipe.manifest, a.data_root, a.split or training.split)
    samples = dataset.samples if a.split else split_samples(dataset.samples, a.hold_out)[1]
    thresholds = {"object_threshold": a.object_threshold, "overlap_threshold": a.overlap_threshold}
    base = replace(recipe.stage(EvaluateSettings, device="cpu"), **thresholds)
    tallies = {rule: Tally(Segmenter(replace(base, overlap=rule), things), dataset.has_segments) for rule in a.rules}
    images = masks = 0
    for image in classified(dataset, samples, a.masks, model, a.scores == "equal", a.every):
        images, masks = images + 1, masks + len(image.logits)
        for tally in tallies.values():
            tally.update(image)
        if images == a.limit:
            break
    about = {
        "recipe": a.recipe,
        "split": a.split or "held out",
        "training": changes,
        "images": images,
        "masks": masks,
        "scores": a.scores,
    }
    result = {**about, **thresholds, "every": a.every, "rules": {rule: t.figures() for rule, t in tallies.items()}}
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    metrics = ("mIoU", "PQ") if dataset.has_segments else ("mIoU",)
    print(f"{images} images that the classifier has not seen ({about['split']}), {masks / images:.0f} masks an image")
    print("| overlap | " + " | ".join(f"{metric}, {variant}" for metric in metrics for variant in VARIANTS) + " |")
    print("|---|" + "---:|" * len(metrics) * len(VARIANTS))
    for rule, tally in tallies.items():
        figures = tally.figures()
        print(f"| `{rule}` | " + " | ".join(f"{x:.2f}" for metric in metrics for x in figures[metric]) + " |")


if __name__ == "__main__":
    main()
