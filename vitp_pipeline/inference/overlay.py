"""Draw results over an image: class colors, borders, and names where a region is deepest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

STRENGTH = 0.55
"""Share of the color in what is shown; the rest is the image."""

SMALLEST = 480
"""Images whose shorter side has fewer pixels are enlarged by a whole factor, so that names can be read."""

TAGGED = 0.004
"""Regions of a smaller share of the image have no name drawn."""


@dataclass(frozen=True)
class Region:
    """Pixels (H, W) bool that share a color and a name."""

    mask: np.ndarray = field(repr=False)
    color: Color
    name: str


def draw_regions(image: np.ndarray, regions: Sequence[Region]) -> Image.Image:
    """Draw regions over an image, later ones over earlier ones.

    Args:
        image: (H, W, 3) uint8.
    Returns:
        RGB, of the image's size or a multiple of it.
    """
    height, width = image.shape[:2]
    owner = np.full((height, width), -1)
    for number, region in enumerate(regions):
        owner[region.mask] = number
    colors = np.array([*(r.color for r in regions), (0, 0, 0)], np.float32)
    shown = np.where((owner >= 0)[..., None], (1 - STRENGTH) * image + STRENGTH * colors[owner], image)
    factor = max(1, -(-SMALLEST // min(height, width)))
    owner = owner.repeat(factor, 0).repeat(factor, 1)
    picture = np.asarray(Image.fromarray(shown.astype(np.uint8)).resize((width * factor, height * factor))).copy()
    picture[_borders(owner)] = 255
    sheet = Image.fromarray(picture)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(max(12, min(sheet.size) // 36))
    for number, region in enumerate(regions):
        inside = owner == number
        if inside.sum() >= TAGGED * owner.size:
            _tag(pen, font, region.name, _deepest(inside), sheet.size)
    return sheet


def _borders(owner: np.ndarray) -> np.ndarray:
    """Find pixels whose right or lower neighbor is another region's."""
    border = np.zeros(owner.shape, bool)
    border[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    border[:-1] |= owner[:-1] != owner[1:]
    return border


def _deepest(inside: np.ndarray) -> tuple[int, int]:
    """Find (row, col) of the pixel farthest from the outside, on a grid of at most about 256 points a side."""
    from scipy.ndimage import distance_transform_edt

    step = -(-max(inside.shape) // 256)
    depth = distance_transform_edt(np.pad(inside[::step, ::step], 1))[1:-1, 1:-1]
    row, col = divmod(int(depth.argmax()), depth.shape[1])
    return row * step, col * step


def _tag(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    place: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """White on a dark ground, centered at (row, col), inside the picture of (width, height)."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(place[1] - width // 2, 0), max(0, size[0] - width))
    y = min(max(place[0] - height // 2, 0), max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=(24, 24, 28))
    pen.text((x + 3 - left, y + 3 - top), text, font=font, fill="white")
