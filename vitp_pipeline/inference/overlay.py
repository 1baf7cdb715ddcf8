"""Draw results over an image: class colors, borders, and names where a region is deepest."""

from __future__ import annotations

from collections.abc import Iterable
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

_PIXELS = 1 << 20
"""Pixels that are blended at once: as floats they take 24 bytes a channel."""


@dataclass(frozen=True)
class Region:
    """Pixels (H, W) bool that share a color and a name."""

    mask: np.ndarray = field(repr=False)
    color: Color
    name: str


def draw_regions(image: np.ndarray, regions: Iterable[Region]) -> Image.Image:
    """Draw regions over an image, later ones over earlier ones; they are read once, one at a time.

    Args:
        image: (H, W, 3) uint8.
    Returns:
        RGB, of the image's size or a multiple of it.
    """
    height, width = image.shape[:2]
    owner = np.full((height, width), -1, np.int32)
    colors, names = [], []
    for number, region in enumerate(regions):
        owner[region.mask] = number
        colors.append(region.color)
        names.append(region.name)
    shown = _blended(image, owner, np.array([*colors, (0, 0, 0)], np.float32))
    factor = max(1, -(-SMALLEST // min(height, width)))
    owner = owner.repeat(factor, 0).repeat(factor, 1)
    picture = np.asarray(Image.fromarray(shown).resize((width * factor, height * factor))).copy()
    picture[_borders(owner)] = 255
    sheet = Image.fromarray(picture)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(max(12, min(sheet.size) // 36))
    for number, name in enumerate(names):
        inside = owner == number
        if inside.sum() >= TAGGED * owner.size:
            _tag(pen, font, name, _deepest(inside), sheet.size)
    return sheet


def _blended(image: np.ndarray, owner: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Blend the colors of owners with an image (H, W, 3) uint8, some rows at a time."""
    shown = np.empty_like(image)
    rows = max(1, _PIXELS // image.shape[1])
    for start in range(0, len(image), rows):
        band = slice(start, start + rows)
        part, own = image[band], owner[band]
        shown[band] = np.where((own >= 0)[..., None], (1 - STRENGTH) * part + STRENGTH * colors[own], part)
    return shown


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
