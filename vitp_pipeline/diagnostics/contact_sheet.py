"""Draw a sheet of sample images beside their labels, to see at a glance whether they match."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vitp_pipeline.classifier.training.annotations import Boxes, read_truth
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets.dataset import Dataset
from vitp_pipeline.datasets.label_kinds.kind import Sample
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import size_of

TILE, SPACE, GAP, LINE, COLUMNS, NAMED = 320, 4, 8, 13, 4, 8
PANEL = TILE + SPACE
"""Pixels from one panel to the next; `COLUMNS` panels stand in a row."""
VEIL = 0.6
"""Share of the class color in the overlay."""
COARSE_EROSION = TrainSettings().coarse_erosion


def draw_sheet(dataset: Dataset, samples: list[Sample], title: str, coarse_erosion: float = COARSE_EROSION) -> bytes:
    """Draw a PNG with, for every sample, the image beside what training reads of it, and the names of its largest
    classes: fine and coarse labels and boxes (paper, Figure 3), or the boxes alone where there are no others.

    Unlabeled pixels keep the image's color. An unreadable sample, or annotation, shows the reason.

    Args:
        coarse_erosion: of coarse labels made from fine ones (`datasets.regions.coarse_regions`).
    """
    tiles = [_tile(dataset, sample, coarse_erosion) for sample in samples]
    columns = max(1, COLUMNS * PANEL // max(tile.width for tile in tiles))
    width = max(tile.width for tile in tiles) * columns + GAP * (columns + 1)
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    height = 2 * LINE + sum(max(tile.height for tile in row) + GAP for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    _write(ImageDraw.Draw(sheet), (GAP, 6), title)
    top = 2 * LINE
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (GAP + column * (width - GAP) // columns, top))
        top += max(tile.height for tile in row) + GAP
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _tile(dataset: Dataset, sample: Sample, coarse_erosion: float) -> Image.Image:
    kinds = _kinds(dataset, sample, coarse_erosion)
    try:
        image = dataset.read_image(sample)
        panels = [("", Image.fromarray(image))]
        areas: dict[int, float] = {}
        for kind, heading in kinds.items():
            panel, found = _panel(dataset, sample, image, kind, coarse_erosion)
            panels, areas = [*panels, (heading, panel)], areas or found
    except InputError as error:
        return _failure(sample.image_id, error, (1 + len(kinds)) * PANEL - SPACE)
    scale = TILE / max(image.shape[:2])
    height, width = max(1, round(scale * image.shape[0])), max(1, round(scale * image.shape[1]))
    tile = Image.new("RGB", (len(panels) * PANEL - SPACE, height + 4 * LINE), "white")
    pen = ImageDraw.Draw(tile)
    for place, (heading, panel) in enumerate(panels):
        tile.paste(panel.resize((width, height)), (place * PANEL, LINE))
        _write(pen, (place * PANEL, 0), heading)
    _write(pen, (0, 0), f"{sample.image_id}  {image.shape[1]}x{image.shape[0]}")
    largest, wide = sorted(areas, key=lambda k: -areas[k])[:NAMED], 2 * len(panels)
    for place, k in enumerate(largest):
        left, top = (place % wide) * PANEL // 2, height + LINE + 3 + (place // wide) * LINE
        pen.rectangle((left, top + 1, left + 9, top + 9), fill=dataset.spec.classes[k].color, outline="black")
        _write(pen, (left + 13, top - 1), dataset.spec.classes[k].name[:20])
    return tile


def _kinds(dataset: Dataset, sample: Sample, coarse_erosion: float) -> dict[str, str]:
    """The annotations that an image has, each with the heading of its panel."""
    if sample.truth is None:
        return {}
    if not dataset.has_masks:
        return {"boxes": "boxes"}
    made = "files of their own" if dataset.has_coarse else f"fine, eroded by {coarse_erosion:g}"
    return {"fine": "fine", "coarse": f"coarse ({made})", "boxes": "boxes"}


def _panel(
    dataset: Dataset, sample: Sample, image: np.ndarray, kind: str, coarse_erosion: float
) -> tuple[Image.Image, dict[int, float]]:
    """Lay an annotation over the image; also area (or number of boxes) by class.

    Raises:
        InputError: the fine labels, or the only annotation, cannot be read. Others show the reason in their panel.
    """
    colors = np.array([info.color for info in dataset.spec.classes], np.uint8)
    try:
        truth = read_truth(dataset, sample, size_of(image), kind, "class-balanced", coarse_erosion)
    except InputError as error:
        if kind == "fine" or not dataset.has_masks:
            raise
        tile = _failure("", error, TILE)
        return tile.resize((image.shape[1], image.shape[0])), {}
    if isinstance(truth, Boxes):
        picture = Image.fromarray(image)
        pen, stroke = ImageDraw.Draw(picture), max(2, max(image.shape) // 120)
        for (top, left, bottom, right), k in zip(truth.edges.tolist(), truth.classes.tolist(), strict=True):
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, tuple(colors[k]), stroke)
        return picture, _counts(truth.classes)
    known = truth.numbers != IGNORE
    mixed = image.astype(np.float32)
    mixed[known] += VEIL * (colors[truth.numbers[known]] - mixed[known])
    return Image.fromarray(mixed.astype(np.uint8)), _counts(truth.numbers[known])


def _counts(classes: np.ndarray) -> dict[int, float]:
    return dict(zip(*(a.tolist() for a in np.unique(classes, return_counts=True)), strict=True))


def _failure(name: str, error: InputError, width: int) -> Image.Image:
    tile = Image.new("RGB", (width, 7 * LINE), (255, 225, 225))
    pen, letters = ImageDraw.Draw(tile), width // 7
    text = error.message
    _write(pen, (2, 0), name)
    for number, start in enumerate(range(0, min(len(text), 6 * letters), letters)):
        _write(pen, (2, (number + 1) * LINE), text[start : start + letters])
    return tile


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    """Draw text; characters beyond Latin-1, which PIL's own font mostly lacks, are replaced."""
    pen.text(at, text.encode("latin-1", "replace").decode("latin-1"), fill="black")


def save_sheet(path: Path, content: bytes) -> None:
    """Write the sheet whole. Raises StorageError."""
    from vitp_pipeline.storage.atomic_files import write_whole

    write_whole(path, content)
