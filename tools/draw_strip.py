"""README's first picture: photographs, the generator's masks, its classes, and the fused classes.

python tools/draw_strip.py runs/coco-sample 2006 3553 285 --data-root data/coco --out docs/images/strip.png

The run is one that is evaluated. A name is that of a region of the semantic map. It is green where most of the labeled
pixels below it are of that class, red and struck out where they are of another one, gray where no pixel is labeled. The
share is that of the labeled pixels whose class is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.evaluation.point_scores import open_scores
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, open_evaluation
from vitp_pipeline.report.mask_statistics import objectness_of
from vitp_pipeline.report.thumbnails import shrunk, top_masks

WIDTH, GAP, TITLE, FONT, COLORS = 460, 8, 40, 24, 200
SMALLEST = 0.012
"""Regions of a smaller share of the image have no name."""
STRENGTH = 0.6
RIGHT, WRONG, UNKNOWN = (22, 101, 52), (170, 24, 32), (70, 70, 76)
Box = tuple[float, float, float, float]
TITLES = ("image", "masks, and their points", "classes by the generator", "fused with ViT-P")


@dataclass(frozen=True)
class Region:
    """A connected piece (H, W) bool of a map, its class, and whether the ground truth agrees; None: no label there."""

    inside: np.ndarray
    category: int
    right: bool | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="an evaluated run directory")
    parser.add_argument("images", nargs="+", help="ids of images, a row each")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--recipe", help="of the run, where its manifest is none of the shipped ones")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    options = parser.parse_args()
    stored = open_evaluation(options.run, options.data_root, options.recipe)
    rows = [row_of(stored, *found) for found in read(stored, options.images)]
    sheet(rows).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


def read(stored: StoredEvaluation, images: Sequence[str]) -> Iterator[tuple[ProposalRecord, np.ndarray | None]]:
    """Yield proposals and class scores of the images, in their order."""
    proposals = stored.evaluation.proposals
    parts = {
        image: (shard, part)
        for shard in range(proposals.run.shards)
        for part, ids in enumerate(proposals.run.parts(shard))
        for image in ids
    }
    if odd := [image for image in images if image not in parts]:
        raise SystemExit(f"the run has no image {odd[0]}")
    for image in images:
        with open_scores(proposals, stored.evaluation.class_scores, *parts[image]) as scores:
            record = proposals.read(image)
            yield record, scores.of(record)


def row_of(stored: StoredEvaluation, record: ProposalRecord, scores: np.ndarray | None) -> list[Image.Image]:
    """Draw the four tiles of an image, each WIDTH wide."""
    evaluation, dataset = stored.evaluation, stored.evaluation.dataset
    sample = dataset.sample(record.image_id)
    photo = Image.fromarray(dataset.read_image(sample))
    size = round(WIDTH * photo.height / photo.width), WIDTH
    photo = photo.resize(size[::-1], Image.Resampling.LANCZOS)
    truth = shrunk(dataset.read_semantic(sample), size)
    view = evaluation.segmenter.score(record, scores, (0.0, evaluation.alpha))
    maps = [shrunk(labels, size) for labels in evaluation.segmenter.semantic([view])]
    colors = np.array([c.color for c in dataset.spec.classes], np.uint8)
    named = [draw_classes(photo, labels, truth, colors, stored.classes) for labels in maps]
    return [photo, draw_masks(photo, record, size), *named]


def draw_masks(photo: Image.Image, record: ProposalRecord, size: tuple[int, int]) -> Image.Image:
    """Draw the masks that are likely an object, each in a color of its own, with their points of highest logit."""
    objectness = objectness_of(record.class_logits)
    shown = np.flatnonzero(objectness[record.kept] > 0.5)
    top = top_masks(record, shown, objectness, size)
    hues = (np.arange(len(shown)) * 0.618034 % 1 * 255).astype(np.uint8)
    wheel = np.stack([hues, np.full_like(hues, 150), np.full_like(hues, 235)], -1)[None]
    tile = blended(photo, top, np.asarray(Image.fromarray(wheel, "HSV").convert("RGB"))[0])
    pen = ImageDraw.Draw(tile)
    points = record.points["max"][record.kept[shown]] * (np.array(size) / np.array(record.view.original))
    for row, col in points[np.unique(top[top >= 0])]:
        pen.ellipse((col - 6, row - 6, col + 6, row + 6), fill="white", outline="black", width=2)
    return tile


def draw_classes(
    photo: Image.Image, labels: np.ndarray, truth: np.ndarray, colors: np.ndarray, names: Sequence[str]
) -> Image.Image:
    """Draw a map of class indices over the photograph, with the names of its larger regions."""
    tile = blended(photo, np.where(labels == IGNORE, -1, labels), colors)
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT)
    labeled = truth != IGNORE
    share = f"{(labels == truth)[labeled].mean():.0%} right" if labeled.any() else ""
    corner = pen.textbbox((tile.width - 8, tile.height - 8), share, font=font, anchor="rs")
    corner = (corner[0] - 8, corner[1] - 8, tile.width, tile.height)
    pen.rectangle(corner, fill="white")
    pen.text((tile.width - 8, tile.height - 8), share, font=font, anchor="rs", fill="black")
    taken: list[Box] = [corner]
    for region in sorted(regions(labels, truth), key=lambda region: -region.inside.sum()):
        name = names[region.category].removesuffix("-merged").replace("-other", "")
        _tag(pen, font, name, region, tile.size, taken)
    return tile


def regions(labels: np.ndarray, truth: np.ndarray) -> Iterator[Region]:
    """Yield the connected pieces of a map that are large enough for a name."""
    for category in np.setdiff1d(labels, [IGNORE]):
        pieces, count = ndimage.label(labels == category)
        for number in range(1, count + 1):
            inside = pieces == number
            if inside.sum() >= SMALLEST * inside.size:
                labeled = inside & (truth != IGNORE)
                most = np.bincount(truth[labeled]).argmax() if labeled.any() else None
                yield Region(inside, int(category), None if most is None else bool(most == category))


def blended(photo: Image.Image, owner: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Blend the colors of owners (H, W), −1 being none, with a photograph, and mark their borders."""
    image = np.asarray(photo, np.float32)
    mixed = np.where(owner[..., None] >= 0, (1 - STRENGTH) * image + STRENGTH * colors[owner], image)
    border = np.zeros(owner.shape, bool)
    border[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    border[:-1] |= owner[:-1] != owner[1:]
    mixed[border] = 255
    return Image.fromarray(mixed.astype(np.uint8))


def _tag(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    region: Region,
    size: tuple[int, int],
    taken: list[Box],
) -> None:
    """Write a name where the region is deepest; not over another name. `size` is (width, height)."""
    depth = ndimage.distance_transform_edt(np.pad(region.inside, 1))[1:-1, 1:-1]
    row, col = divmod(int(depth.argmax()), depth.shape[1])
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 12, bottom - top + 10
    x = min(max(col - width / 2, 0), size[0] - width)
    y = min(max(row - height / 2, 0), size[1] - height)
    box = (x, y, x + width, y + height)
    if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
        return
    taken.append(box)
    pen.rectangle(box, fill=UNKNOWN if region.right is None else RIGHT if region.right else WRONG)
    pen.text((x + 6 - left, y + 5 - top), text, font=font, fill="white")
    if region.right is False:
        pen.line((x + 3, y + height / 2 + 2, x + width - 3, y + height / 2 + 2), fill="white", width=2)


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of tiles below their titles; few colors keep the file small."""
    height = TITLE + sum(row[0].height + GAP for row in rows) - GAP
    page = Image.new("RGB", (len(TITLES) * (WIDTH + GAP) - GAP, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT + 2)
    for column, title in enumerate(TITLES):
        pen.text((column * (WIDTH + GAP) + 2, 4), title, font=font, fill="black")
    y = TITLE
    for row in rows:
        for column, tile in enumerate(row):
            page.paste(tile, (column * (WIDTH + GAP), y))
        y += row[0].height + GAP
    return page.quantize(COLORS, kmeans=2, dither=Image.Dither.FLOYDSTEINBERG)


if __name__ == "__main__":
    main()
