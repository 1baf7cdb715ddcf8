"""Label maps and masks drawn from polygons: those of Cityscapes' annotation files, and COCO's outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vitp_pipeline.datasets.images import check_pixels
from vitp_pipeline.datasets.spec import LEFT_OUT, DatasetSpec
from vitp_pipeline.datasets.storage import read_bytes
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size

UNLABELLED = "unlabeled"
"""Cityscapes' name of what no polygon covers."""


def read_polygons(path: Path, spec: DatasetSpec) -> np.ndarray:
    """A Cityscapes polygon file (`…_polygons.json`) as (H, W) int32 label values, drawn as cityscapesscripts does: one
    over the other in the file's order, a group (`cargroup`) as what it is a group of.

    Raises:
        InputError: missing, not such a file, or a name that is neither a class nor in `[labels.polygons]`.
    """
    values = {c.name: c.label for c in spec.classes} | spec.polygons
    try:
        content = json.loads(read_bytes(path))
        size = (int(content["imgWidth"]), int(content["imgHeight"]))
        check_pixels(*size, f"{path}: this label file")
        image = Image.new("I", size, spec.polygons.get(UNLABELLED, 0))
        draw = ImageDraw.Draw(image)
        for entry in content["objects"]:
            name = entry["label"]
            if entry.get("deleted"):
                continue
            if name not in values:
                name = name.removesuffix("group")
            if name not in values:
                raise InputError(
                    f"{path}: the label {entry['label']!r} is neither a class nor known in manifest {spec.name!r}",
                    "Add it to `classes` or to `labels.polygons`",
                )
            if values[name] != LEFT_OUT:
                draw.polygon([tuple(corner) for corner in entry["polygon"]], fill=values[name])
    except FileNotFoundError as error:
        raise InputError(f"{path}: this label file does not exist", "Check --data-root") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: not a file of Cityscapes polygons ({error!r})", "Download it again") from error
    return np.asarray(image).astype(np.int32)


def outline_mask(outline: Any, size: Size, where: str) -> np.ndarray:
    """A COCO `segmentation` (list of polygons, or run lengths, compressed or not) as (H, W) bool.

    Raises:
        InputError: neither, or of another size.
    """
    from pycocotools import mask

    check_pixels(size[1], size[0], where)
    try:
        if isinstance(outline, dict):
            height, width = outline["size"]
            _require_size((height, width), size, where)
            runs = mask.frPyObjects(outline, height, width) if isinstance(outline["counts"], list) else outline
            found = mask.decode(runs)
        else:
            polygons = [list(polygon) for polygon in outline if len(polygon) >= 6]
            if not polygons:
                return np.zeros(size, bool)
            if not sum(map(_length, polygons)) <= LONGEST:  # nor is that of one with NaN
                raise InputError(f"{where}: an outline that goes far beyond the image")
            found = mask.decode(mask.merge(mask.frPyObjects(polygons, *size)))
    except InputError:
        raise
    except Exception as error:  # pycocotools raises bare Exceptions
        raise InputError(f"{where}: a segmentation that cannot be read ({error})") from error
    _require_size(found.shape, size, where)
    return np.asarray(found).astype(bool)


LONGEST = 10_000_000
"""Pixels of the longest outline that pycocotools is given: its C code trusts sizes and coordinates, and crashes."""


def _length(polygon: list[float]) -> float:
    corners = np.asarray(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _require_size(found: tuple[int, ...], size: Size, where: str) -> None:
    if tuple(found) != tuple(size):
        raise InputError(f"{where}: a segmentation of {found[1]}×{found[0]} pixels, not {size[1]}×{size[0]}")
