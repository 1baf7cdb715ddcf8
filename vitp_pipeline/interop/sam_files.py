"""The masks of one image as Segment Anything writes them, checked record by record.

The forms are those of facebookresearch/segment-anything: `SamAutomaticMaskGenerator.generate` and scripts/amg.py, and
the files of the data set SA-1B (its README). Of a record only the mask, `predicted_iou` and `stability_score` are used;
its `area`, `bbox`, `point_coords` and `crop_box` say nothing that the mask does not, or nothing about the mask.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.datasets.label_files import read_label_file
from vitp_pipeline.decoding.archives import is_file, listing, read_bytes
from vitp_pipeline.decoding.arrays import ArrayFile
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.decoding.records import real_number, segmentation_rle, shown, whole_number
from vitp_pipeline.decoding.rle import Rle, encode_mask
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size
from vitp_pipeline.interop.mask_content import check_count

METADATA = "metadata.csv"
"""amg's list of the masks in a folder of PNG files."""
SCORES = ("predicted_iou", "stability_score")
SLACK = 0.5
"""A score this far outside [0, 1] is clipped: nothing bounds the network's prediction of an IoU. One farther away is on
another scale.
"""
HINT = "Write it as `SamAutomaticMaskGenerator` with output_mode coco_rle, or amg.py with --convert-to-rle, does"

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_LONGEST = 2**26
"""Bytes of a metadata.csv: a row has some hundred."""

Masks = tuple[list[Rle], list[float]]
"""Masks of an image, and the objectness of each, in [0, 1]."""


def objectness_of(record: Mapping[str, Any], where: str) -> float:
    """Compute predicted IoU × stability score of a record, each clipped to [0, 1]; a missing one counts as 1.

    Raises:
        InputError: one is not a number, or lies more than `SLACK` outside [0, 1].
    """
    product = 1.0
    for name in SCORES:
        if name in record:
            score = real_number(record[name], f"{where}: its `{name}`")
            if not -SLACK <= score <= 1 + SLACK:
                raise InputError(f"{where}: its `{name}` is {score:g}, far outside [0, 1]")
            product *= min(max(score, 0.0), 1.0)
    return product


def parts_of(path: Path) -> list[Path]:
    """List the files from which the masks of an image are read: a JSON file and arrays beside it, or a metadata.csv and
    PNG files.
    """
    if path.name == METADATA:
        return [path, *(path.parent / name for name in _numbered(path.parent).values())]
    return [path, *_arrays_beside(path)]


def named_image(path: Path) -> str | None:
    """Read which image file a JSON file names, as those of SA-1B do; None where it names none.

    Raises:
        InputError: not JSON.
    """
    content = read_foreign_json(path, "file of masks")
    image = content.get("image") if isinstance(content, dict) else None
    name = image.get("file_name") if isinstance(image, dict) else None
    return name if isinstance(name, str) else None


def masks_of_json(path: Path, size: Size) -> tuple[Masks, str | None]:
    """Read a list of records, or a file of SA-1B, for an image of (H, W).

    A record's `segmentation` is COCO's run lengths, compressed or not. Where no record has one, the masks are the
    planes of an array (Q, H, W) in a file beside, of the same name with `.npy` or `.npz`.

    Returns:
        the masks; and the image file that it names, if any.
    Raises:
        InputError: not such a file, or an invalid record: the first, with the reason.
    """
    content, name = read_foreign_json(path, "file of masks"), None
    if isinstance(content, dict):
        name = _check_image(content.get("image"), size, str(path))
        content = content.get("annotations")
    if not isinstance(content, list):
        raise InputError(f"{path}: holds neither a list of masks nor `annotations` with one", HINT)
    check_count(len(content), str(path))
    scores: list[float] = []
    for number, record in enumerate(content):
        if not isinstance(record, dict):
            raise InputError(f"{path}: mask {number} is {shown(record)}, not an object", HINT)
        scores.append(objectness_of(record, f"{path}: mask {number}"))
    without = [number for number, record in enumerate(content) if record.get("segmentation") is None]
    if content and len(without) == len(content):
        return (_masks_beside(path, len(content), size), scores), name
    if without:
        raise InputError(f"{path}: mask {without[0]} has no `segmentation`", HINT)
    found = enumerate(content)
    return ([segmentation_rle(own["segmentation"], size, f"{path}: mask {n}") for n, own in found], scores), name


def masks_of_pngs(path: Path, size: Size) -> Masks:
    """Read the PNG files that a metadata.csv lists, for an image of (H, W).

    Raises:
        InputError: an invalid row, a row without a file or a file without a row, a file of another size or of more than
            two values.
    """
    rows = dict(_rows(path))
    files = _numbered(path.parent)
    for number in rows:
        if number not in files:
            raise InputError(f"{path.parent / f'{number}.png'}: does not exist, but {METADATA} lists mask {number}")
    if more := [name for number, name in files.items() if number not in rows]:
        raise InputError(f"{path.parent / more[0]}: has no row in {METADATA}", "Write the folder again with amg.py")
    masks = []
    for number in rows:
        png = path.parent / files[number]
        image = read_label_file(png)
        values = image.samples
        if image.palette is not None:
            if "gray" not in image.form:
                raise InputError(f"{png}: a mask in colors; it needs one channel of 0 and 255")
            values = image.palette[:, 0][values]
        if values.shape != size:
            raise InputError(f"{png}: a mask of {values.shape[1]}×{values.shape[0]} pixels, not {size[1]}×{size[0]}")
        masks.append(encode_mask(_inside(values, str(png))))
    return masks, list(rows.values())


def _check_image(image: Any, size: Size, where: str) -> str | None:
    """Compare the `image` of an SA-1B file with an image of (H, W), and return its file name."""
    if image is None:
        return None
    if not isinstance(image, dict):
        raise InputError(f"{where}: its `image` is {shown(image)}, not an object", HINT)
    for side, key in zip(size, ("height", "width"), strict=True):
        if key in image and (said := whole_number(image[key], f"{where}: the `{key}` of its image")) != side:
            raise InputError(f"{where}: is of an image of {key} {said}, not {side}")
    name = image.get("file_name")
    return name if isinstance(name, str) else None


def _rows(path: Path) -> Iterator[tuple[int, float]]:
    """Read (id, objectness) of each row of a metadata.csv."""
    try:
        lines = list(csv.reader(io.StringIO(read_bytes(path, _LONGEST).decode("utf-8-sig"), newline=""), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({shown(str(error))})", "Write the folder again with amg.py"
        ) from error
    head = [name.strip() for name in lines[0]] if lines else []
    if "id" not in head:
        raise InputError(f"{path}: its first line names no column `id`", "Write the folder again with amg.py")
    check_count(len(lines) - 1, str(path))
    seen: set[int] = set()
    for place, line in enumerate(lines[1:], 2):
        if not line:
            continue
        where = f"{path}: line {place}"
        if len(line) != len(head):
            raise InputError(f"{where} has {len(line)} values for {len(head)} columns")
        row = dict(zip(head, line, strict=True))
        if not _NUMBER.fullmatch(row["id"].strip()):
            raise InputError(f"{where}: its `id` is {shown(row['id'])}, not a number")
        number = int(row["id"])
        if number in seen:
            raise InputError(f"{where}: its `id` {number} occurs twice")
        seen.add(number)
        yield number, objectness_of({name: _number(row[name]) for name in SCORES if name in row}, where)


def _number(text: str) -> float | str:
    """Take a text as a number if it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def _numbered(folder: Path) -> dict[int, str]:
    """List the files 0.png, 1.png … of a folder by number; amg's forks write others beside them."""
    names = (name for name in listing(folder, "*.png") if _NUMBER.fullmatch(name.removesuffix(".png")))
    return {int(name.removesuffix(".png")): name for name in sorted(names)}


def _arrays_beside(path: Path) -> list[Path]:
    return [beside for ending in (".npy", ".npz") if is_file(beside := path.with_suffix(ending))]


def _masks_beside(path: Path, count: int, size: Size) -> list[Rle]:
    """Read the masks of records without `segmentation`, plane by plane."""
    files = _arrays_beside(path)
    if len(files) != 1:
        there = "no array" if not files else "two arrays"
        raise InputError(
            f"{path}: its masks have no `segmentation`, and {there} of this name (.npy, .npz) beside", HINT
        )
    (file,) = files
    with ArrayFile(file) as arrays:
        if len(arrays.names) != 1:
            raise InputError(f"{file}: has {len(arrays.names)} arrays, not one of all masks")
        (name,) = arrays.names
        if (shape := arrays.header(name).shape) != (count, *size):
            raise InputError(f"{file}: is {shown(shape)}, not {(count, *size)} for {count} masks of {path.name}")
        planes = enumerate(arrays.planes(name))
        return [encode_mask(_inside(plane, f"{file}: mask {number}")) for number, plane in planes]


def _inside(values: np.ndarray, where: str) -> np.ndarray:
    """Take (H, W) numbers, 0 outside and one other number inside, as bool. Raises InputError for other numbers."""
    if values.dtype == np.bool_:
        return values
    inside = np.asarray(values > 0)
    if not (values == np.multiply(inside, values.max(), dtype=values.dtype)).all():
        raise InputError(f"{where}: holds more than two values, or not 0 outside of the mask: it is not binary")
    return inside
