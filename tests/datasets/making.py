"""Small datasets on disk, in both label layouts, for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vitp_pipeline.datasets import ClassInfo, DatasetSpec
from vitp_pipeline.datasets.spec import SplitSpec

NAMES = ("sky", "road", "car")
THINGS = (False, False, True)
COLORS = np.array([(40, 90, 230), (120, 120, 120), (230, 40, 40)], np.uint8)
CATEGORIES = (3, 7, 90)  # COCO category ids: neither dense nor from zero


def draw(rng: np.random.Generator, height: int = 28, width: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) whose color says the class, and its labels (H, W) in 0..2: sky above road, one car."""
    labels = np.zeros((height, width), np.uint8)
    labels[int(rng.integers(height // 4, height // 2)) :] = 1
    top, left = int(rng.integers(height // 2)), int(rng.integers(width // 2))
    labels[top : top + height // 3, left : left + width // 3] = 2
    return COLORS[labels], labels


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def semantic_spec(**changes) -> DatasetSpec:
    classes = tuple(ClassInfo(n, i + 1, t, (0, 0, 0)) for i, (n, t) in enumerate(zip(NAMES, THINGS, strict=True)))
    fields = {
        "name": "toy",
        "classes": classes,
        "kind": "semantic-png",
        "ignore": (0, 255),
        "splits": {"train": SplitSpec("images/*.*", "labels/{stem}.png")},
    }
    return DatasetSpec(**{**fields, **changes})


def write_semantic(root: Path, count: int = 4, seed: int = 0) -> DatasetSpec:
    """Images a0, a1, … (PNG) with labels 1..3; the top-left pixel is 255 (ignored)."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        image, labels = draw(rng, 28 + 2 * (i % 3), 36 + 4 * (i % 2))
        labels = labels + 1
        labels[0, 0] = 255
        write_png(root / "images" / f"a{i}.png", image)
        write_png(root / "labels" / f"a{i}.png", labels)
    return semantic_spec()


def coco_spec(**changes) -> DatasetSpec:
    classes = tuple(ClassInfo(n, c, t, (0, 0, 0)) for n, c, t in zip(NAMES, CATEGORIES, THINGS, strict=True))
    split = SplitSpec("val", "panoptic_val", "annotations/panoptic_val.json")
    fields = {"name": "toy", "classes": classes, "kind": "coco-panoptic", "ignore": (), "splits": {"val": split}}
    return DatasetSpec(**{**fields, **changes})


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def write_coco(root: Path, count: int = 4, seed: int = 0) -> tuple[DatasetSpec, dict]:
    """COCO panoptic layout; segment ids need three bytes, the top-left pixel is void. Returns the annotation too."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(count):
        number = 139 + 7 * i
        image, labels = draw(rng, 28 + 2 * (i % 3), 36 + 4 * (i % 2))
        write_png(root / "val" / f"{number:06d}.png", image)
        ids = np.zeros(labels.shape, np.int64)
        segments = []
        for k in np.unique(labels).tolist():
            segment = 70000 + 300 * k + i
            ids[labels == k] = segment
            rows, cols = np.nonzero(labels == k)
            top, left = int(rows.min()), int(cols.min())
            box = [left, top, int(cols.max()) + 1 - left, int(rows.max()) + 1 - top]
            crowd = int(k == 2 and i == 1)
            segments.append({"id": segment, "category_id": CATEGORIES[k], "iscrowd": crowd, "bbox": box})
        ids[0, 0] = 0
        write_png(root / "panoptic_val" / f"{number:06d}.png", ids_to_rgb(ids))
        images.append({"id": number, "file_name": f"{number:06d}.png", "height": ids.shape[0], "width": ids.shape[1]})
        annotations.append({"image_id": number, "file_name": f"{number:06d}.png", "segments_info": segments})
    data = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": c, "name": n, "isthing": int(t)} for c, n, t in zip(CATEGORIES, NAMES, THINGS, strict=True)
        ],
    }
    write_annotations(root, data)
    return coco_spec(), data


def write_annotations(root: Path, data: dict) -> None:
    path = root / "annotations" / "panoptic_val.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


COCO_MANIFEST = f"""
name = "toy"
classes = [
  {{ name = "sky", label = {CATEGORIES[0]}, thing = false }},
  {{ name = "road", label = {CATEGORIES[1]}, thing = false }},
  {{ name = "car", label = {CATEGORIES[2]}, thing = true }},
]
[labels]
kind = "coco-panoptic"
[splits.val]
images = "val"
labels = "panoptic_val"
annotations = "annotations/panoptic_val.json"
"""


def truncate(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
