"""A decoder of COCO's `segmentation` in plain loops, to compare with: valid input only."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np


def slow_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode polygons or run lengths to (H, W) bool, as pycocotools' C code does it, number by number."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return _filled(counts if isinstance(counts, list) else _counts(counts), size)
    mask = np.zeros(size, bool)
    for polygon in segmentation:
        if len(polygon) >= 6:
            mask |= _filled(_runs_of_polygon([float(v) for v in polygon], *size), size)
    return mask


def _filled(counts: list[int], size: tuple[int, int]) -> np.ndarray:
    pixels, value = [], False
    for count in counts:
        pixels += [value] * count
        value = not value
    return np.array(pixels, bool).reshape(size[1], size[0]).T


def _counts(text: str | bytes) -> list[int]:
    codes, counts = list(text.encode() if isinstance(text, str) else text), []
    while codes:
        value, place, more = 0, 0, True
        while more:
            code = codes.pop(0) - 48
            value |= (code & 31) << 5 * place
            more, place = bool(code & 32), place + 1
            if not more and code & 16:
                value |= -1 << 5 * place
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def _runs_of_polygon(xy: list[float], height: int, width: int) -> list[int]:
    """The outline in fifths of a pixel, its crossings of columns, and the runs between them."""
    corners = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in zip(xy[::2], xy[1::2], strict=True)]
    corners.append(corners[0])
    points: list[tuple[int, int]] = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        dx, dy = abs(x1 - x0), abs(y1 - y0)
        if dx == dy == 0:  # C divides by 0 and gives the point a row that nothing reads
            continue
        flip = (dx >= dy and x0 > x1) or (dx < dy and y0 > y1)
        if flip:
            x0, x1, y0, y1 = x1, x0, y1, y0
        slope = (y1 - y0) / dx if dx >= dy else (x1 - x0) / dy
        steps = range(max(dx, dy) + 1)
        for step in reversed(steps) if flip else steps:
            if dx >= dy:
                points.append((x0 + step, int(y0 + slope * step + 0.5)))
            else:
                points.append((int(x0 + slope * step + 0.5), y0 + step))
    places = []
    for (u0, v0), (u1, v1) in pairwise(points):
        if u0 == u1:
            continue
        column = ((u1 if u1 < u0 else u1 - 1) + 0.5) / 5 - 0.5
        if column != np.floor(column) or not 0 <= column <= width - 1:
            continue
        row = (min(v0, v1) + 0.5) / 5 - 0.5
        places.append(int(column) * height + int(np.ceil(min(max(row, 0), height))))
    places = sorted([*places, height * width])
    return [b - a for a, b in pairwise([0, *places])]
