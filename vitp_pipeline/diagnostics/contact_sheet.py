"""Draw a sheet of sample images overlaid with their labels, to see at a glance whether they match."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vitp_pipeline.datasets.dataset import Dataset
from vitp_pipeline.datasets.label_kinds.kind import Sample
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import InputError

TILE, GAP, LINE, COLUMNS, NAMED = 320, 8, 13, 2, 8
VEIL = 0.6
"""Share of the class color in the overlay."""


def draw_sheet(dataset: Dataset, samples: list[Sample], title: str) -> bytes:
    """Draw a PNG with, for every sample, the image, the overlay and the names of its largest classes (or boxes);
    unlabeled pixels keep the image's color. An unreadable sample shows the reason.
    """
    tiles = [_tile(dataset, sample) for sample in samples]
    width = COLUMNS * (tiles[0].width + GAP) + GAP
    rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    height = 2 * LINE + sum(max(tile.height for tile in row) + GAP for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    _write(ImageDraw.Draw(sheet), (GAP, 6), title)
    top = 2 * LINE
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (GAP + column * (tile.width + GAP), top))
        top += max(tile.height for tile in row) + GAP
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _tile(dataset: Dataset, sample: Sample) -> Image.Image:
    try:
        image = dataset.read_image(sample)
        overlay, areas = _overlay(dataset, sample, image)
    except InputError as error:
        return _failure(sample, error)
    scale = TILE / max(image.shape[:2])
    height, width = max(1, round(scale * image.shape[0])), max(1, round(scale * image.shape[1]))
    tile = Image.new("RGB", (2 * TILE + 4, height + 4 * LINE), "white")
    tile.paste(Image.fromarray(image).resize((width, height)), (0, LINE))
    tile.paste(overlay.resize((width, height)), (TILE + 4, LINE))
    pen = ImageDraw.Draw(tile)
    _write(pen, (0, 0), f"{sample.image_id}  {image.shape[1]}x{image.shape[0]}")
    largest = sorted(areas, key=lambda k: -areas[k])[:NAMED]
    for place, k in enumerate(largest):
        left, top = (place % 4) * (tile.width // 4), height + LINE + 3 + (place // 4) * LINE
        pen.rectangle((left, top + 1, left + 9, top + 9), fill=dataset.spec.classes[k].color, outline="black")
        _write(pen, (left + 13, top - 1), dataset.spec.classes[k].name[:20])
    return tile


def _overlay(dataset: Dataset, sample: Sample, image: np.ndarray) -> tuple[Image.Image, dict[int, float]]:
    """Make the overlay, and area (or number of boxes) by class; the image itself without ground truth."""
    if sample.truth is None:
        return Image.fromarray(image), {}
    colors = np.array([info.color for info in dataset.spec.classes], np.uint8)
    if not dataset.has_masks:
        edges, classes = dataset.read_boxes(sample, (image.shape[0], image.shape[1]))
        picture = Image.fromarray(image)
        pen, stroke = ImageDraw.Draw(picture), max(2, image.shape[1] // 200)
        for (top, left, bottom, right), k in zip(edges.tolist(), classes.tolist(), strict=True):
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, tuple(colors[k]), stroke)
        return picture, dict(zip(*(a.tolist() for a in np.unique(classes, return_counts=True)), strict=True))
    labels = dataset.read_semantic(sample)
    if labels.shape != image.shape[:2]:
        raise InputError(f"{sample.label}: is {labels.shape[1]}×{labels.shape[0]}, not of the image's size")
    known = labels != IGNORE
    mixed = image.astype(np.float32)
    mixed[known] += VEIL * (colors[labels[known]] - mixed[known])
    numbers, counts = np.unique(labels[known], return_counts=True)
    return Image.fromarray(mixed.astype(np.uint8)), dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _failure(sample: Sample, error: InputError) -> Image.Image:
    tile = Image.new("RGB", (2 * TILE + 4, 7 * LINE), (255, 225, 225))
    pen = ImageDraw.Draw(tile)
    text = error.message
    _write(pen, (2, 0), sample.image_id)
    for number, start in enumerate(range(0, min(len(text), 540), 90)):
        _write(pen, (2, (number + 1) * LINE), text[start : start + 90])
    return tile


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    """Draw text; characters beyond Latin-1, which PIL's own font mostly lacks, are replaced."""
    pen.text(at, text.encode("latin-1", "replace").decode("latin-1"), fill="black")


def save_sheet(path: Path, content: bytes) -> None:
    """Write the sheet whole. Raises StorageError."""
    from vitp_pipeline.storage.atomic_files import write_whole

    write_whole(path, content)
