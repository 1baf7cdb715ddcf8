"""Draw label maps from the polygons of Cityscapes' annotation files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vitp_pipeline.datasets.spec import LEFT_OUT, DatasetSpec
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.decoding.limits import check_pixels
from vitp_pipeline.decoding.records import corners_of_points, shown, whole_number
from vitp_pipeline.errors import InputError

UNLABELED = "unlabeled"
"""Cityscapes' name of what no polygon covers."""


def read_polygons(path: Path, spec: DatasetSpec) -> np.ndarray:
    """Read a Cityscapes polygon file (`…_polygons.json`) as (H, W) int32 label values, drawn as cityscapesscripts: one
    over the other in the file's order, a group (`cargroup`) as what it is a group of.

    Raises:
        InputError: missing, not such a file, or a name that is not a class or in `[labels.polygons]`.
    """
    values = {c.name: c.label for c in spec.classes} | spec.polygons
    try:
        content = read_foreign_json(path, "label file")
        width, height = (whole_number(content[key], f"{path}: `{key}`") for key in ("imgWidth", "imgHeight"))
        check_pixels(width, height, f"{path}: this label file")
        image = Image.new("I", (width, height), spec.polygons.get(UNLABELED, 0))
        draw = ImageDraw.Draw(image)
        for number, entry in enumerate(content["objects"]):
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
                where = f"{path}: the polygon of object {number} ({shown(name)})"
                corners = corners_of_points(entry["polygon"], (height, width), where)
                draw.polygon([tuple(corner) for corner in corners.tolist()], fill=values[name])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: not a file of Cityscapes polygons ({error!r})", "Download it again") from error
    return np.asarray(image).astype(np.int32)
