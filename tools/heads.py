"""Many linear heads on one frozen backbone: every image is seen once for all of them.

Closed forms of points add up (`LdaStatistics`), so what is learned from several parts of the data is a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vitp_pipeline.artifacts.proposals import open_proposals, points_of
from vitp_pipeline.classifier.build import starting_model
from vitp_pipeline.classifier.inference import average_of, mask_logits_of_points
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.training.lda import LdaStatistics
from vitp_pipeline.classifier.training.sampling import sample_points
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import IGNORE, Dataset, Sample
from vitp_pipeline.datasets.regions import boxes_of_regions, coarse_regions
from vitp_pipeline.geometry import normalize_points
from vitp_pipeline.metrics.semantic import Confusion, areas
from vitp_pipeline.postprocess.mask_labels import majority_label
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.storage.atomic_files import write_whole

Part = tuple[str, str]
"""(split, kind of label)."""
EPOCHS, POINTS_PER_STEP, RATE, DECAY = 15, 512, 1e-3, 0.1
"""Of a head by gradient: AdamW, its rate falling to 0 in a half cosine."""


@dataclass(frozen=True)
class Head:
    """A linear head, and how it classifies masks.

    Attributes:
        weight, bias: (K, D) and (K,) float32.
        points: policy.
        temperature: as in [classify].
        flip: whether the flipped image is averaged in.
    """

    weight: np.ndarray
    bias: np.ndarray
    points: str = "max"
    temperature: float = 1.0
    flip: bool = True


def frozen_model(recipe: Recipe, data_root: Path) -> PointViT:
    """The recipe's model before training."""
    settings = recipe.stage(TrainSettings)
    weights = recipe.find_file(settings.weights, data_root)
    model, _ = starting_model(settings, recipe.manifest.class_names, weights, None)
    model.freeze()
    return model.eval()


def box_labels(regions: np.ndarray, classes: np.ndarray, background: int = 0) -> np.ndarray:
    """Make the label map that boxes allow: the smallest one that covers a pixel names it.

    Args:
        regions, classes: (H, W) numbers of connected pieces and (S,) their classes, as `Dataset.read_regions`.
        background: class that gets no box, and every pixel outside all boxes.
    Returns:
        (H, W) int16 class indices.
    """
    drawn = np.full(regions.shape, background, np.int16)
    edges = boxes_of_regions(regions, len(classes)).astype(int)
    sizes = (edges[:, 2:] - edges[:, :2]).prod(1)
    for piece in np.argsort(-sizes, kind="stable"):
        if classes[piece] != background:
            top, left, bottom, right = edges[piece]
            drawn[top:bottom, left:right] = classes[piece]
    return drawn


def labels_of(dataset: Dataset, sample: Sample, kind: str, erosion: float) -> np.ndarray:
    """(H, W) int16 class indices, IGNORE where the kind of label says nothing."""
    if kind == "fine":
        return dataset.read_semantic(sample)
    regions, classes = dataset.read_regions(sample)
    if kind == "boxes":
        return box_labels(regions, classes)
    return np.append(classes, IGNORE).astype(np.int16)[coarse_regions(regions, erosion)]  # −1 reads the last


@dataclass
class Learned:
    """What the points of a part amount to, for a seed."""

    statistics: LdaStatistics
    features: list[np.ndarray]
    classes: list[np.ndarray]


@torch.inference_mode()
def learn(
    recipe: Recipe,
    model: PointViT,
    kinds_of: dict[str, tuple[str, ...]],
    data_root: Path,
    seeds: list[int],
    kept: tuple[Part, ...] = (),
) -> dict[tuple[Part, int], Learned]:
    """See every image of some splits once; returns what was learned from a part with a seed.

    Args:
        kinds_of: kinds of labels by split: fine, coarse, boxes.
        kept: parts whose features are kept, for heads by gradient.
    """
    settings, width = recipe.stage(TrainSettings), model.head.in_features
    found = {
        ((split, kind), seed): Learned(LdaStatistics(len(model.classes), width), [], [])
        for split, kinds in kinds_of.items()
        for kind in kinds
        for seed in seeds
    }
    for split, kinds in kinds_of.items():
        dataset = Dataset(recipe.manifest, data_root, split)
        for number, sample in enumerate(dataset.samples):
            image = dataset.read_image(sample)
            drawn = []
            for kind in kinds:
                labels = labels_of(dataset, sample, kind, settings.coarse_erosion)
                for seed in seeds:
                    rng = np.random.default_rng([seed, number])
                    if some := sample_points(labels, settings.points_per_image, rng, settings.sampling):
                        drawn.append((((split, kind), seed), normalize_points(some[0], labels.shape), some[1]))
            pixels = model.normalize(torch.from_numpy(prepare_image(image, model.image_size))[None])
            places = torch.from_numpy(np.concatenate([where for _, where, _ in drawn]))[None]
            features = np.split(model.features(pixels, places)[0].numpy(), len(drawn))
            for (key, _, classes), own in zip(drawn, features, strict=True):
                found[key].statistics.update(own, classes)
                if key[0] in kept:
                    found[key].features.append(own.astype(np.float16))
                    found[key].classes.append(classes)
            if number % 50 == 49:
                print(f"{split}: {number + 1} of {len(dataset)} images", flush=True)
    return found


def save_learned(path: Path, learned: dict[tuple[Part, int], Learned]) -> None:
    """Write a file that `load_learned` reads."""
    arrays = {}
    for ((split, kind), seed), own in learned.items():
        for name in ("count", "sum", "square"):
            arrays[f"{split} {kind} {seed} {name}"] = getattr(own.statistics, name)
        if own.features:
            arrays[f"{split} {kind} {seed} features"] = np.concatenate(own.features)
            arrays[f"{split} {kind} {seed} classes"] = np.concatenate(own.classes)

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def load_learned(path: Path) -> dict[tuple[Part, int], Learned]:
    """Read what `save_learned` wrote."""
    learned: dict[tuple[Part, int], Learned] = {}
    with np.load(path) as arrays:
        for key in arrays:
            split, kind, seed, name = key.split()
            part = (split, kind), int(seed)
            if part not in learned:
                classes, width = arrays[f"{split} {kind} {seed} sum"].shape
                learned[part] = Learned(LdaStatistics(classes, width), [], [])
            if name in ("features", "classes"):
                getattr(learned[part], name).append(arrays[key])
            else:
                setattr(learned[part].statistics, name, arrays[key])
    return learned


def closed_form(
    parts: list[Learned], settings: TrainSettings, columns: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of all parts together; only some columns of the features are read where they are given."""
    classes, width = parts[0].statistics.sum.shape
    columns = np.arange(width) if columns is None else columns
    total = LdaStatistics(classes, len(columns))
    for part in (part.statistics for part in parts):
        total.count = total.count + part.count
        total.sum = total.sum + part.sum[:, columns]
        total.square = total.square + part.square[np.ix_(columns, columns)]
    weight, bias = np.zeros((classes, width), np.float32), np.zeros(classes, np.float32)
    weight[:, columns], bias[:] = total.head(settings.shrinkage, settings.class_prior)
    return weight, bias


def by_gradient(steps: list[list[Learned]], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a linear head on standardized features, trained on one list of parts after the other."""
    torch.manual_seed(seed)
    classes = len(steps[0][0].statistics.count)
    head: torch.nn.Linear | None = None
    for parts in steps:
        x = torch.from_numpy(np.concatenate([f for part in parts for f in part.features])).float()
        y = torch.from_numpy(np.concatenate([c for part in parts for c in part.classes]))
        if head is None:
            mean, std = x.mean(0), x.std(0) + 1e-6  # of the first step, also for the others
            head = torch.nn.Linear(x.shape[1], classes)
            torch.nn.init.zeros_(head.bias)
            torch.nn.init.trunc_normal_(head.weight, std=0.02)
        x = (x - mean) / std
        per_epoch = len(x) // POINTS_PER_STEP
        optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * per_epoch)
        for _ in range(EPOCHS):
            order = torch.randperm(len(x))
            for first in range(0, per_epoch * POINTS_PER_STEP, POINTS_PER_STEP):
                chosen = order[first : first + POINTS_PER_STEP]
                optimizer.zero_grad()
                F.cross_entropy(head(x[chosen]), y[chosen]).backward()
                optimizer.step()
                schedule.step()
    assert head is not None
    weight = head.weight.detach() / std
    return weight.numpy(), (head.bias.detach() - weight @ mean).numpy()


class Tally:
    """Figures of a head at a weight of the classifier.

    Attributes:
        areas: (K, 3) of every image, as `Confusion.areas`.
    """

    def __init__(self, classes: int) -> None:
        self.maps, self.right, self.matched = Confusion(classes), 0, 0
        self.areas: list[np.ndarray] = []

    def figures(self) -> dict[str, float]:
        """mIoU of the classes present, pixel accuracy, mask classification accuracy."""
        return {
            "mIoU": self.maps.miou(),
            "pixel_accuracy": self.maps.pixel_accuracy(),
            "mask_accuracy": self.right / self.matched,
        }


@torch.inference_mode()
def measure_heads(
    recipe: Recipe, model: PointViT, heads: dict[str, Head], alphas: tuple[float, ...], data_root: Path, out: Path
) -> dict[tuple[str, float], Tally]:
    """Classify the points of the split's masks with every head, and measure the maps at every weight of it.

    At weight 0 the generator alone is measured once, for all heads.
    """
    segmenter = Segmenter(recipe.stage(EvaluateSettings, device="cpu"), recipe.manifest.things)
    dataset = Dataset(recipe.manifest, data_root, recipe.stage(ProposalSettings).split)
    tallies = {(name, alpha): Tally(len(segmenter.things)) for name in heads for alpha in alphas}
    first = next(iter(heads))
    for name in heads:
        if 0.0 in alphas:
            tallies[name, 0.0] = tallies[first, 0.0]
    for record in open_proposals(out):
        sample = dataset.sample(record.image_id)
        truth = dataset.read_semantic(sample)
        pixels = model.normalize(torch.from_numpy(prepare_image(dataset.read_image(sample), model.image_size))[None])
        features = {
            policy: _both_ways(model, pixels, normalize_points(points_of(record, policy), record.view.original))
            for policy in {head.points for head in heads.values()}
        }
        label = majority_label(torch.from_numpy(record.masks), record.view, truth)
        for name, head in heads.items():
            w, b, seen = torch.from_numpy(head.weight).T, torch.from_numpy(head.bias), features[head.points]
            logits = torch.stack([(f @ w + b).log_softmax(-1) for f in (seen if head.flip else seen[:1])]).mean(0)
            per_mask = len(logits) // len(record.class_logits)
            scores = mask_logits_of_points(logits[None], per_mask, head.temperature, average_of(head.points))[0]
            own = [alpha for alpha in alphas if alpha or name == first]
            view = segmenter.score(record, scores.numpy(), own)
            matched = (1 - view.no_object[0, view.kept].numpy() > 0.5) & (label != IGNORE)
            right = (view.probs[:, view.kept].argmax(2).numpy() == label)[:, matched].sum(1)
            for alpha, labels, count in zip(own, segmenter.semantic([view]), right, strict=True):
                tally = tallies[name, alpha]
                tally.areas.append(areas(tally.maps.update(labels, truth)))
                tally.right += int(count)
                tally.matched += int(matched.sum())
    return tallies


def _both_ways(model: PointViT, pixels: torch.Tensor, places: np.ndarray) -> list[torch.Tensor]:
    """(N, D) features at points, in the image and in the flipped one."""
    where = torch.from_numpy(places)[None]
    flipped = where.clone()
    flipped[..., 1] = -where[..., 1] - 2 / pixels.shape[-1]  # as `classifier.inference.point_logits`
    return [model.features(pixels, where)[0], model.features(pixels.flip(-1), flipped)[0]]
