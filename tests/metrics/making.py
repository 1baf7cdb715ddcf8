"""Random ground truths and predictions with everything that makes metrics differ: crowds, void, empty classes,
one-pixel segments, equal scores, ids up to 2^24."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitp_pipeline.decoding.rle import decode_mask, encode_mask
from vitp_pipeline.metrics.instances import Detections, TrueInstances


@dataclass
class Scene:
    """One image: segment ids with void 0, their classes and crowds, and overlapping predicted masks."""

    ids: np.ndarray
    segments: list[tuple[int, int, bool]]  # id, class, crowd
    masks: list[np.ndarray]
    found: Detections

    @property
    def truth(self) -> TrueInstances:
        return TrueInstances(
            [encode_mask(self.ids == s[0]) for s in self.segments],
            np.array([s[1] for s in self.segments], np.int64),
            np.array([s[2] for s in self.segments], bool),
            encode_mask(self.ids == 0),
        )

    @property
    def rles(self) -> list[dict]:
        return [encode_mask(m) for m in self.masks]


def scene(rng: np.random.Generator, classes: int = 3, side: int = 12, cell: int = 3) -> Scene:
    """Blocks of cells as segments; predictions are shifted, noisy or merged segments, with scores that often tie."""
    size = tuple(int(n) for n in rng.integers(1, side, 2) * cell)
    count = int(rng.integers(0, 7))
    numbers = np.concatenate([[0], rng.choice(2**24, count, replace=False) + 1]) if count else np.zeros(1, np.int64)
    blocks = rng.integers(0, count + 1, (side, side))
    index = np.kron(blocks, np.ones((cell, cell), np.int64))[: size[0], : size[1]].copy()
    if count and rng.random() < 0.5:
        index[tuple(rng.integers(0, s) for s in size)] = rng.integers(0, count + 1)
    used = [i for i in range(1, count + 1) if (index == i).any()]
    category = rng.integers(0, classes, count + 1)
    segments = [(int(numbers[i]), int(category[i]), bool(rng.random() < 0.25)) for i in used]
    masks, names = [], []
    for _ in range(int(rng.integers(0, 9))):
        i = int(rng.integers(0, count + 1))
        mask = np.roll(index == i, tuple(rng.integers(-1, 2, 2)), (0, 1))
        mask ^= rng.random(size) < rng.choice([0.0, 0.05, 0.3])
        if rng.random() < 0.1:
            mask[:] = False
            mask.flat[int(rng.integers(mask.size))] = rng.random() < 0.7
        masks.append(mask)
        names.append(category[i] if rng.random() < 0.7 else rng.integers(0, classes))
    extra = rng.integers(0, len(masks), int(rng.integers(0, 4))) if masks else np.zeros(0, np.int64)
    mask = np.concatenate([np.arange(len(masks)), extra]).astype(np.int64)  # a mask may have several names
    category = np.concatenate([names, rng.integers(0, classes, len(extra))]).astype(np.int64)
    scores = np.round(rng.random(len(mask)), int(rng.choice([1, 6]))).astype(np.float32)
    return Scene(numbers[index].astype(np.int32), segments, masks, Detections(mask, category, scores))


def scenes(seed: int, **kind) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [scene(rng, **kind) for _ in range(int(rng.integers(1, 5)))]


def coco_files(images: list[Scene], classes: int) -> tuple[dict, list[dict]]:
    """COCO's annotation and result dictionaries of the scenes; category ids are 10, 20, …"""
    annotations, results = [], []
    for number, image in enumerate(images, 1):
        truth = image.truth
        for rle, category, crowd in zip(truth.masks, truth.categories, truth.crowd, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 10 * (int(category) + 1)}
            area, text = int(decode_mask(rle).sum()), {**rle, "counts": rle["counts"].decode()}
            bbox = [0, 0, 1, 1]
            annotations.append({**entry, "segmentation": text, "iscrowd": int(crowd), "area": area, "bbox": bbox})
        for m, category, score in zip(image.found.mask, image.found.categories, image.found.scores, strict=True):
            rle = encode_mask(image.masks[m])
            results.append(
                {
                    "image_id": number,
                    "category_id": 10 * (int(category) + 1),
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                    "score": float(score),
                }
            )
    return {
        "info": {},
        "images": [
            {"id": i, "height": s.ids.shape[0], "width": s.ids.shape[1], "file_name": f"{i}.png"}
            for i, s in enumerate(images, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": 10 * (k + 1), "name": f"c{k}"} for k in range(classes)],
    }, results
