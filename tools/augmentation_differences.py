"""Measure what the authors' augmentation of ADE20K does beside the one here (docs/training-data.md).

    python tools/augmentation_differences.py --data data --json docs/measured/augmentation.json

Theirs (`ADE20k_P`): a crop of 3:4 to 4:3 whatever the image's shape, stretched to the square by nearest neighbor, then
turned, then flipped. Here: a crop of 3:4 to 4:3 of the image's own shape, turned, flipped, and resized once, bilinear.
Geometry: on the sizes of the ADE20K sample. Accuracy: a linear head in closed form on a frozen ViT-S, learned from the
training images of the COCO sample (ADE20K's are six) with each augmentation, on points of its validation images.
`--table FILE` prints the table from such a file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import _processor
from PIL import Image

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.lda import LdaStatistics
from vitp_pipeline.classifier.training.sampling import sample_points
from vitp_pipeline.classifier.weights import read_backbone
from vitp_pipeline.config.files import weights_folder
from vitp_pipeline.config.recipe import load_preset
from vitp_pipeline.datasets import IGNORE, Dataset, load_manifest
from vitp_pipeline.geometry import normalize_points

SIDE, POINTS = 224, 250
KEYS = load_preset("ade20k")
AREA, TURN = KEYS["crop_scale"], KEYS["rotation"]
Pair = tuple[np.ndarray, np.ndarray]
"""Image (3, height, width) uint8 and labels (h, w)."""
Points = tuple[np.ndarray, np.ndarray]
"""Features (N, D) and classes (N,) of points."""


def here(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
    """Augment as `preset = "ade20k"` does."""
    return Augmentation(KEYS["flip"], tuple(AREA), TURN).apply(image, labels, (SIDE, SIDE), rng)


def theirs(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, bilinear: bool = False, own_shape: bool = False
) -> Pair:
    """Augment as the authors do; with `bilinear` the image is resampled so, with `own_shape` crops are as here."""
    height, width = labels.shape
    left, top, right, bottom = crop(height, width, rng, width / height if own_shape else 1.0)
    box, size = (left, top, right, bottom), (SIDE, SIDE)
    turn, flip = float(rng.uniform(-TURN, TURN)), rng.random() < 0.5
    planes = []
    for plane, fill in ((Image.fromarray(image), 0), (Image.fromarray(labels.astype(np.int32)), IGNORE)):
        how = Image.Resampling.BILINEAR if bilinear and plane.mode == "RGB" else Image.Resampling.NEAREST
        part = plane.crop(box).resize(size, how).rotate(turn, how, fillcolor=fill if plane.mode != "RGB" else None)
        planes.append(np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part))
    return np.ascontiguousarray(planes[0].transpose(2, 0, 1)), planes[1].astype(labels.dtype)


def crop(height: int, width: int, rng: np.random.Generator, shape: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) as torchvision's RandomResizedCrop draws it, ratios times `shape`."""
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        ratio = shape * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, shape * 3 / 4), shape * 4 / 3)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


WAYS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], Pair]] = {
    "here": here,
    "theirs": theirs,
    "theirs, bilinear": partial(theirs, bilinear=True),
    "theirs, crops of the image's shape": partial(theirs, own_shape=True),
}


def geometry(ade20k: Dataset, draws: int) -> dict[str, float]:
    """Of both crops: how much wider than in validation things are, mean over draws; and the share that is black."""
    found: dict[str, list[float]] = {"here: width": [], "theirs: width": [], "here: black": [], "theirs: black": []}
    rng = np.random.default_rng(0)
    augmentation = Augmentation(KEYS["flip"], tuple(AREA), TURN)
    for sample in ade20k.samples:
        height, width = ade20k.image_size(sample)
        white, labels = np.full((height, width, 3), 255, np.uint8), np.zeros((height, width), np.int16)
        for _ in range(draws):
            box = augmentation.draw((height, width), rng).crop
            assert box is not None
            for name, (left, top, right, bottom) in (("here", box), ("theirs", crop(height, width, rng, 1.0))):
                found[f"{name}: width"].append((bottom - top) / (right - left) * width / height)
        for name, way in (("here", here), ("theirs", theirs)):
            found[f"{name}: black"] += [
                float((way(white, labels, rng)[1] == IGNORE).mean()) for _ in range(draws // 10)
            ]
    return {name: float(np.mean(values)) for name, values in found.items()}


def accuracy(model: PointViT, train: Dataset, val: list[Points], way: str, seed: int) -> float:
    """Share of the validation points that a head learned with an augmentation classifies as they are labeled."""
    statistics = LdaStatistics(len(train.spec.classes), val[0][0].shape[1])
    for number, sample in enumerate(train.samples):
        rng = np.random.default_rng((seed, number))
        image, labels = WAYS[way](train.read_image(sample), train.read_semantic(sample), rng)
        if (drawn := sample_points(labels, POINTS, rng)) is not None:
            statistics.update(features(model, image, labels.shape, drawn[0])[None], drawn[1][None])
    weight, bias = statistics.head(0.1, 1.0)
    return float(np.concatenate([(found @ weight.T + bias).argmax(1) == classes for found, classes in val]).mean())


def points_of(model: PointViT, dataset: Dataset) -> list[Points]:
    """Points of images that are only resized, always the same."""
    points = []
    for number, sample in enumerate(dataset.samples):
        labels, rng = dataset.read_semantic(sample), np.random.default_rng((9, number))
        if (drawn := sample_points(labels, POINTS, rng)) is not None:
            image = prepare_image(dataset.read_image(sample), (SIDE, SIDE))
            points.append((features(model, image, labels.shape, drawn[0]), drawn[1]))
    return points


@torch.inference_mode()
def features(model: PointViT, image: np.ndarray, size: tuple[int, ...], points: np.ndarray) -> np.ndarray:
    """(N, D) of points (N, 2) of labels of some size."""
    prompts = torch.from_numpy(normalize_points(points, (size[0], size[1])))[None]
    return np.asarray(model.features(model.normalize(torch.from_numpy(image)[None]), prompts)[0])


def table(results: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    yield f"| augmentation | points classified right, {len(results['seeds'])} seeds | difference from `here` |"
    yield "|---|---:|---:|"
    base = np.array(results["accuracy"]["here"])
    for way, values in results["accuracy"].items():
        gain = 100 * (np.array(values) - base)
        spread = f"{gain.mean():+.2f} ({', '.join(f'{g:+.2f}' for g in gain)})" if way != "here" else ""
        yield f"| {way} | {100 * np.mean(values):.2f} % | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets: coco, ADEChallengeData2016")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=0, help="images of each split; 0 = all")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--table", type=Path, help="print the table of such a file")
    a = parser.parse_args()
    if a.table:
        print(*table(json.loads(a.table.read_text(encoding="utf-8"))), sep="\n")
        return
    if not a.data:
        parser.error("--data is needed")
    spec = load_manifest("coco-panoptic")
    train, val = (Dataset(spec, a.data / "coco", split, a.limit or None) for split in ("train", "val"))
    own = {"point_token": "sampled", "depth": 10, "feature_layers": (8, 9, 10), "norm": "none"}  # as coco-sample
    model = PointViT(ModelConfig("vit_small_patch14_dinov2", spec.class_names, (SIDE, SIDE), **own))  # type: ignore[arg-type]
    weights = weights_folder() / "vit_small_patch14_dinov2.imgfocus.fp16.safetensors"
    load_backbone_weights(model, read_backbone(weights), weights.name)
    model.eval()
    ade20k = Dataset(load_manifest("ade20k"), a.data / "ADEChallengeData2016", "train")
    results: dict[str, Any] = {
        "seeds": a.seeds,
        "images": [len(train), len(val)],
        "processor": _processor(),
        "geometry": geometry(ade20k, 200),
        "accuracy": {},
    }
    points = points_of(model, val)
    for way in WAYS:
        results["accuracy"][way] = [accuracy(model, train, points, way, seed) for seed in a.seeds]
        print(way, results["accuracy"][way], flush=True)
        if a.json:
            a.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(results["geometry"])
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
