"""Draw results over an image: class colors, borders, names where a region is deepest, and a legend below.

Things have white borders and dark name tags; stuff has dark borders and light tags, and its color is paler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

STRENGTH, PALE = 0.6, 0.42
"""Share of the color in what is shown, of things and of stuff; the rest is the image."""

SMALLEST = 480
"""Images whose shorter side has fewer pixels are enlarged by a whole factor, so that names can be read."""

TAGGED = 0.002
"""Regions of a smaller share of the image have no name drawn; the legend has their class."""

SHADES = (1.0, 0.72, 1.28, 0.86, 1.14)
"""Lightness of a class's color, so that touching things of a class differ."""

LIGHT, DARK = (250, 250, 250), (24, 24, 28)

_PIXELS = 1 << 20
"""Pixels that are blended at once: as floats they take 24 bytes a channel."""


@dataclass(frozen=True)
class Region:
    """Pixels (H, W) bool that share a color and a name.

    `label` is the class in the legend; `thing` is None where the task does not tell things from stuff.
    """

    mask: np.ndarray = field(repr=False)
    color: Color
    name: str
    label: str = ""
    thing: bool | None = None


@dataclass(frozen=True)
class _Drawn:
    """A region without its pixels."""

    color: Color
    name: str
    label: str
    thing: bool | None


def draw_regions(image: np.ndarray, regions: Iterable[Region]) -> Image.Image:
    """Draw regions over an image, later ones over earlier ones; they are read once, one at a time.

    Args:
        image: (H, W, 3) uint8.
    Returns:
        RGB: the image at its size or a multiple of it, and below it the legend, of the same width.
    """
    height, width = image.shape[:2]
    owner = np.full((height, width), -1, np.int32)
    drawn: list[_Drawn] = []
    for number, region in enumerate(regions):
        owner[region.mask] = number
        drawn.append(_Drawn(region.color, region.name, region.label or region.name, region.thing))
    shown = _blended(image, owner, _shaded(drawn, _touching(owner)), [r.thing is not False for r in drawn])
    factor = max(1, -(-SMALLEST // min(height, width)))
    owner = owner.repeat(factor, 0).repeat(factor, 1)
    picture = np.asarray(Image.fromarray(shown).resize((width * factor, height * factor))).copy()
    _draw_borders(picture, owner, [region.thing is not False for region in drawn])
    sheet = Image.fromarray(picture)
    font = ImageFont.load_default(max(13, min(sheet.size) // 40))
    _draw_names(sheet, font, owner, drawn)
    return _with_legend(sheet, font, [drawn[number] for number in np.unique(owner).tolist() if number >= 0])


def _blended(image: np.ndarray, owner: np.ndarray, colors: np.ndarray, strong: Sequence[bool]) -> np.ndarray:
    """Blend the colors of owners with an image (H, W, 3) uint8, some rows at a time."""
    shown = np.empty_like(image)
    share = np.array([*(STRENGTH if s else PALE for s in strong), 0.0], np.float32)  # the last is of no region
    rows = max(1, _PIXELS // image.shape[1])
    for start in range(0, len(image), rows):
        band = slice(start, start + rows)
        own = owner[band]
        weight = share[own][..., None]
        shown[band] = (1 - weight) * image[band] + weight * colors[own]
    return shown


def _touching(owner: np.ndarray) -> set[tuple[int, int]]:
    """Find the pairs of regions that have neighboring pixels, the lower number first."""
    found: set[tuple[int, int]] = set()
    for one, other in ((owner[:, :-1], owner[:, 1:]), (owner[:-1], owner[1:])):
        differ = one != other
        pairs = np.stack([one[differ], other[differ]], 1)
        found.update((min(a, b), max(a, b)) for a, b in np.unique(pairs, axis=0).tolist() if min(a, b) >= 0)
    return found


def _shaded(drawn: Sequence[_Drawn], touching: set[tuple[int, int]]) -> np.ndarray:
    """Return (R + 1, 3) float32 colors, the last of no region; touching regions of a color get shades that differ."""
    chosen: list[int] = []
    for number, region in enumerate(drawn):
        taken = {
            chosen[other]
            for other in range(number)
            if drawn[other].color == region.color and (other, number) in touching
        }
        free = [shade for shade in range(len(SHADES)) if shade not in taken]
        chosen.append(free[0] if free else number % len(SHADES))
    colors = [np.clip(np.multiply(r.color, SHADES[s]), 0, 255) for r, s in zip(drawn, chosen, strict=True)]
    return np.array([*colors, (0, 0, 0)], np.float32)


def _draw_borders(picture: np.ndarray, owner: np.ndarray, strong: Sequence[bool]) -> None:
    """Draw a line between regions, white where one of them is a thing, else dark; its width grows with the picture."""
    white = np.array([*strong, False])[owner]
    of_things, of_stuff = np.zeros(owner.shape, bool), np.zeros(owner.shape, bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differ = owner[here] != owner[there]
        either = white[here] | white[there]
        of_things[here] |= differ & either
        of_stuff[here] |= differ & ~either
    for border, color in ((of_stuff, DARK), (of_things, (255, 255, 255))):
        for _ in range(min(owner.shape) // 500):
            border[:, 1:] |= border[:, :-1].copy()
            border[1:] |= border[:-1].copy()
        picture[border] = color


def _draw_names(sheet: Image.Image, font: Font, owner: np.ndarray, drawn: Sequence[_Drawn]) -> None:
    """Write names where regions are deepest, larger regions first; one that finds no free place stays without."""
    pen = ImageDraw.Draw(sheet)
    sizes = np.bincount(owner[owner >= 0], minlength=len(drawn))
    taken: list[tuple[int, int, int, int]] = []
    step = -(-max(owner.shape) // 256)
    coarse = owner[::step, ::step]
    for number in np.argsort(-sizes, kind="stable").tolist():
        if sizes[number] < TAGGED * owner.size:
            break
        region, place = drawn[number], _deepest(coarse == number)
        if place is None:  # a sliver between the points of the grid
            continue
        left, top, right, bottom = pen.textbbox((0, 0), region.name, font=font)
        pad = max(3, int(bottom - top) // 5)
        width, height = int(right - left) + 2 * pad, int(bottom - top) + 2 * pad
        for shift in (0, height + 2, -height - 2):
            x = min(max(step * place[1] - width // 2, 0), max(0, sheet.width - width))
            y = min(max(step * place[0] - height // 2 + shift, 0), max(0, sheet.height - height))
            box = (x, y, x + width, y + height)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                ground, ink = (LIGHT, DARK) if region.thing is False else (DARK, LIGHT)
                pen.rectangle(box, fill=ground)
                pen.text((x + pad - left, y + pad - top), region.name, font=font, fill=ink)
                break


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _deepest(inside: np.ndarray) -> tuple[int, int] | None:
    """Find (row, col) of the pixel farthest from the outside; None where there is none."""
    from scipy.ndimage import distance_transform_edt

    if not inside.any():
        return None
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    row, col = divmod(int(depth.argmax()), depth.shape[1])
    return row, col


def _with_legend(sheet: Image.Image, font: Font, drawn: Sequence[_Drawn]) -> Image.Image:
    """Append a legend: every class once, things before stuff; lines are broken at the picture's width."""
    classes = {(r.thing, r.label): r.color for r in drawn}
    if not classes:
        return sheet
    pen = ImageDraw.Draw(sheet)
    _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)
    box = int(bottom - top)
    line, gap = box + max(6, box // 2), max(4, box // 2)
    x, y = gap, gap
    entries: list[tuple[int, int, str, Color | None]] = []
    for kind, title in ((True, "things"), (False, "stuff"), (None, "")):
        of_kind = [(label, color) for (thing, label), color in sorted(classes.items(), key=str) if thing is kind]
        if of_kind and title:
            x, y = gap, y + line if x > gap else y
            entries.append((x, y, f"{title}:", None))
            x += int(pen.textlength(f"{title}:", font=font)) + 2 * gap
        for label, color in of_kind:
            width = box + gap + int(pen.textlength(label, font=font))
            if x > gap and x + width > sheet.width - gap:
                x, y = gap, y + line
            entries.append((x, y, label, color))
            x += width + 2 * gap
    whole = Image.new("RGB", (sheet.width, sheet.height + y + line), LIGHT)
    whole.paste(sheet)
    pen = ImageDraw.Draw(whole)
    for x, y, text, swatch in entries:
        y += sheet.height
        if swatch is not None:
            pen.rectangle((x, y, x + box, y + box), fill=swatch, outline=DARK)
            x += box + gap
        pen.text((x, y - top), text, font=font, fill=DARK)
    return whole
