"""Draw results side by side: image, ground truth, the generator's classes, the fused classes, and a color legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.datasets import IGNORE, DatasetSpec
from vitp_pipeline.evaluation.definition import Evaluation
from vitp_pipeline.evaluation.point_scores import open_scores

GAP, TITLE, SWATCH = 6, 18, 10
COLUMNS = ("image", "ground truth", "generator", "fused")


def draw_result(evaluation: Evaluation, path: Path, rows: int = 3) -> Path:
    """Draw the images on which fusion gained most, of the first part of the run.

    Args:
        path: the PNG to write.
        rows: how many images.
    Returns:
        `path`.
    """
    evaluation.proposals.require_one_view("pictures")
    panels = []
    with open_scores(evaluation.proposals, evaluation.class_scores, 0, 0) as scores:
        for record in evaluation.proposals.read_part(0, 0):
            panels.append(_panels(evaluation, record, scores.of(record)))
    panels.sort(key=lambda panel: -panel[0])
    del panels[rows:]
    height, width = panels[0][1][0].shape[:2]
    breadth, bottom = 4 * (width + GAP) - GAP, TITLE + len(panels) * (height + GAP)
    shown = sorted(set().union(*(classes for *_, classes in panels)))
    places = _legend_places([evaluation.dataset.spec.class_names[k] for k in shown], breadth)
    sheet = Image.new("RGB", (breadth, bottom + (places[-1][1] if places else 0) + TITLE), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (left, top) in zip(shown, places, strict=True):
        color = evaluation.dataset.spec.classes[k].color
        pen.rectangle((left, bottom + top + 2, left + SWATCH, bottom + top + 2 + SWATCH), fill=color)
        pen.text((left + SWATCH + 5, bottom + top + 2), evaluation.dataset.spec.class_names[k], fill="black")
    for column, title in enumerate(COLUMNS):
        pen.text((column * (width + GAP) + 2, 3), title, fill="black")
    for row, (_, pictures, _) in enumerate(panels):
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((width, height))
            sheet.paste(tile, (column * (width + GAP), TITLE + row * (height + GAP)))
    sheet.save(path)
    return path


def _legend_places(names: list[str], breadth: int) -> list[tuple[int, int]]:
    """Return left and top of every legend entry, in lines no wider than `breadth`."""
    places, left, top = [], 0, 0
    for name in names:
        wide = round(ImageFont.load_default().getlength(name)) + SWATCH + 20
        if left and left + wide > breadth:
            left, top = 0, top + TITLE
        places.append((left, top))
        left += wide
    return places


def _panels(
    evaluation: Evaluation, record: ProposalRecord, point_logits: np.ndarray | None
) -> tuple[float, list[np.ndarray], set[int]]:
    """Return (pixels that fusion corrected, the four pictures, the classes in them)."""
    dataset = evaluation.dataset
    sample = dataset.sample(record.image_id)
    image, truth = dataset.read_image(sample), dataset.read_semantic(sample)
    view = evaluation.segmenter.score(record, point_logits, (0.0, evaluation.alpha))
    generator, fused = evaluation.segmenter.semantic([view])
    labeled = truth != IGNORE
    gain = float((fused == truth)[labeled].mean() - (generator == truth)[labeled].mean()) if labeled.any() else 0.0
    maps = (truth, generator, fused)
    classes = {int(k) for labels in maps for k in np.unique(labels)} - {IGNORE}
    return gain, [image, *(colored(image, labels, dataset.spec) for labels in maps)], classes


def colored(image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, strength: float = 0.7) -> np.ndarray:
    """Blend class colors over an image.

    Args:
        image: (H, W, 3) uint8. labels: (H, W) class indices; IGNORE stays gray.
        strength: 0 = only the image, 1 = only the colors.
    """
    table = np.array([*(c.color for c in spec.classes), (128, 128, 128)], np.float32)
    gray = image.mean(2, keepdims=True).astype(np.float32)
    mixed: np.ndarray = strength * table[labels] + (1 - strength) * gray
    return mixed.astype(np.uint8)
