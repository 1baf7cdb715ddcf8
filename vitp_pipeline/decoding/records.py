"""Decode masks, boxes and numbers of other programs' files, for ground truth and imports alike.

Everything is checked before anything is computed or allocated: C code of pycocotools trusts sizes, counts and
coordinates. What is wrong is an InputError that begins with `where`, which names file and record, so that a bad record
costs its own image only. Memory is bounded by the record's own size, the image's size and `LONGEST`.
"""

from __future__ import annotations

import math
import reprlib
from array import array
from typing import Any

import numpy as np

from vitp_pipeline.decoding.limits import check_pixels
from vitp_pipeline.decoding.rle import Rle, counts_of_text, decode_mask
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size

LONGEST = 4_000_000
"""Pixels that the outlines of an object are long together, at most: pycocotools holds every fifth of one."""

Box = tuple[float, float, float, float]
"""COCO's (left, top, width, height) in pixels."""

_SHOWN = reprlib.Repr()
_SHOWN.maxother = _SHOWN.maxstring = 40


def shown(value: Any) -> str:
    """Show the beginning of any value, on one line of printable ASCII."""
    try:
        return _SHOWN.repr(value).encode("ascii", "backslashreplace").decode()
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a very long number"


def real_number(value: Any, where: str) -> float:
    """Take a finite number as a float. Raises InputError for anything else, booleans too."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InputError(f"{where} is {shown(value)}, not a finite number")


def whole_number(value: Any, where: str) -> int:
    """Take a whole number of at most 63 bits as an int. Raises InputError for anything else, booleans too."""
    number = real_number(value, where)
    if number != math.floor(number) or abs(number) >= 2**62:
        raise InputError(f"{where} is {shown(value)}, not a whole number")
    return int(value)


def box_of(value: Any, where: str) -> Box:
    """Take a COCO box. Raises InputError unless it is four finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise InputError(f"{where} is {shown(value)}, not four numbers")
    left, top, width, height = (real_number(v, f"{where}: a number") for v in value)
    return left, top, width, height


def segmentation_rle(segmentation: Any, size: Size, where: str) -> Rle:
    """Take a COCO `segmentation` (list of polygons, or run lengths, compressed or not) as run lengths of (H, W).

    A polygon of fewer than three corners encloses nothing, nor does an empty list. Polygons are drawn as pycocotools
    draws them.

    Raises:
        InputError: neither, of another size, or run lengths that do not add up to the image's pixels.
    """
    check_pixels(size[1], size[0], where)
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, size, where)
    if isinstance(segmentation, list | tuple):
        return _from_polygons(segmentation, size, where)
    raise InputError(f"{where}: its segmentation is {shown(segmentation)}, neither a list of polygons nor run lengths")


def segmentation_mask(segmentation: Any, size: Size, where: str) -> np.ndarray:
    """Take a COCO `segmentation` as (H, W) bool. Raises InputError as `segmentation_rle`."""
    return decode_mask(segmentation_rle(segmentation, size, where))


def corners_of(polygon: Any, size: Size, where: str) -> np.ndarray:
    """Take a flat list x1, y1, x2, y2, … as (n, 2) float64 corners, no farther outside the image than `LONGEST`.

    Raises:
        InputError: something else than pairs of finite numbers, or corners so far away.
    """
    if not isinstance(polygon, array):
        if not isinstance(polygon, list | tuple):
            raise InputError(f"{where} is {shown(polygon)}, not a list of coordinates")
        if polygon and all(isinstance(corner, list | tuple) for corner in polygon):
            raise InputError(f"{where} is a list of points", "Write it as a flat list x1, y1, x2, y2, …")
        polygon = array("d", (real_number(value, f"{where}: a coordinate") for value in polygon))
    if len(polygon) % 2:
        raise InputError(f"{where} has {len(polygon)} coordinates: x and y must come in pairs")
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    if not ((corners >= -LONGEST) & (corners <= (size[1] + LONGEST, size[0] + LONGEST))).all():  # nor is NaN
        raise InputError(f"{where} goes far beyond the image, or is not finite")
    return corners


def corners_of_points(points: Any, size: Size, where: str) -> np.ndarray:
    """Take a list of points [[x1, y1], [x2, y2], …] as `corners_of` does a flat one."""
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise InputError(f"{where} is {shown(points)}, not a list of points [x, y]")
    return corners_of([value for point in points for value in point], size, where)


def _from_polygons(polygons: list[Any] | tuple[Any, ...], size: Size, where: str) -> Rle:
    from pycocotools import mask as coco

    if polygons and isinstance(polygons[0], int | float):
        raise InputError(
            f"{where}: its segmentation is one flat list of numbers, not a list of polygons",
            "Write [[x1, y1, x2, y2, …]], a list in the list",
        )
    drawn = [corners_of(p, size, f"{where}: polygon {n} of its segmentation") for n, p in enumerate(polygons)]
    drawn = [corners for corners in drawn if len(corners) > 2]
    length = sum(float(np.abs(c - np.roll(c, 1, axis=0)).max(axis=1).sum()) for c in drawn)
    if length > LONGEST:
        raise InputError(f"{where}: its outline is {length:.0f} pixels long, more than {LONGEST}")
    if not drawn:
        return _from_counts([size[0] * size[1]], size)
    rles: list[Rle] = coco.frPyObjects([corners.ravel() for corners in drawn], *size)
    while len(rles) > 1:  # two by two: one after the other takes the square of the time
        rles = [coco.merge(rles[n : n + 2]) for n in range(0, len(rles), 2)]
    return rles[0]


def _from_runs(runs: dict[Any, Any], size: Size, where: str) -> Rle:
    said, counts = runs.get("size"), runs.get("counts")
    if not isinstance(said, list | tuple) or len(said) != 2:
        raise InputError(f"{where}: the `size` of its segmentation is {shown(said)}, not [height, width]")
    height, width = (whole_number(v, f"{where}: the `size` of its segmentation: a number") for v in said)
    if (height, width) != tuple(size):
        raise InputError(f"{where}: a segmentation of {width}×{height} pixels, not {size[1]}×{size[0]}")
    what = f"{where}: the `counts` of its segmentation"
    if isinstance(counts, str | bytes):
        if len(counts) > 2 * height * width + 64:  # one character a pixel is the most that a mask needs
            raise InputError(f"{what} are longer than those of any mask of {width}×{height} pixels")
        try:
            runs_of_text = counts_of_text(counts)
        except ValueError as error:
            raise InputError(f"{what} {error}") from error
        _check_sum(runs_of_text, size, what)
        return {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}
    if not isinstance(counts, list | tuple):
        raise InputError(f"{what} are {shown(counts)}, neither a list nor text")
    odd = next((v for v in counts if type(v) is not int or not 0 <= v < 2**32), None)
    if odd is not None or None in counts:
        raise InputError(f"{what} hold {shown(odd)}, which is not a run length")
    _check_sum(np.array(counts, np.int64), size, what)
    return _from_counts(counts, size)


def _from_counts(counts: list[int] | tuple[int, ...], size: Size) -> Rle:
    from pycocotools import mask as coco

    rle: Rle = coco.frPyObjects({"size": list(size), "counts": list(counts)}, *size)
    return rle


def _check_sum(counts: np.ndarray, size: Size, what: str) -> None:
    """Raise InputError unless runs cover the image exactly: pycocotools leaves the rest of its memory unwritten."""
    pixels = size[0] * size[1]
    for end in (counts.min(), counts.max()) if len(counts) else ():
        if not 0 <= end <= pixels:
            raise InputError(f"{what} hold {end}, which is not a run length in an image of {pixels} pixels")
    if (total := int(counts.sum())) != pixels:
        raise InputError(f"{what} add up to {total} pixels, not to the image's {pixels}")
