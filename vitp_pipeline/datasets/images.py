"""Image files to arrays, and nothing unreadable gets through.

What is read as what (docs/faults.md): the format by the content, never by the name; of animations the first frame;
photographs upright by their EXIF orientation, as mmcv and detectron2 read them; transparency is left out.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vitp_pipeline.datasets.storage import MAX_BYTES, read_bytes
from vitp_pipeline.errors import InputError

MAX_PIXELS = 250_000_000
"""A file of a few kilobytes can claim to be larger, and would fill the memory."""
FORMATS = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
"""What PIL reads by itself. Of its other formats some start programs (EPS), and none is one of a dataset."""
Image.MAX_IMAGE_PIXELS = None  # `open_image` has the limit; PIL would warn first, and on every thread


def open_image(path: Path, what: str = "image") -> Image.Image:
    """A decoded image file, on disk or in an archive.

    Raises:
        InputError: missing, too large, of a format that is not read, or it cannot be decoded.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
        image = Image.open(io.BytesIO(content), formats=_formats())
        check_pixels(image.width, image.height, f"{path}: this {what}")
        image.load()
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{path}: this {what} does not exist", "Check --data-root and the manifest's splits"
        ) from error
    except Exception as error:  # each format's decoder fails in its own ways on a damaged file
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(
            f"{path}: this {what} cannot be read ({reason})", "Replace the file, then run again"
        ) from error
    return image


def check_pixels(width: int, height: int, what: str) -> None:
    """Raises InputError when something claims to be larger than any image that can be used, or to have no pixels."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(
            f"{what} claims to have {width}×{height} pixels, which is not between 1 and {MAX_PIXELS / 1e6:g} million",
            "Replace it, by a smaller copy perhaps",
        )


RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
"""What cameras write before they make a picture of it. Many are TIFF files whose first image is a thumbnail."""

_HEIF = (b"hei", b"hev", b"mif1", b"msf1", b"avif", b"avis")
"""How the brands of ISO 23008-12 (and AVIF) that stand for pictures begin."""


def unread_format(path: Path) -> str:
    """What to call the format of a photograph that phones and cameras make and this PIL does not read; else ""."""
    if path.suffix.lower() in RAW:
        return f"RAW ({path.suffix.lower()})"
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return ""  # `open_image` says why
    if head[4:8] != b"ftyp" or not head[8:].startswith(_HEIF):
        return ""
    try:
        Image.open(path, formats=_formats()).close()  # AVIF, where PIL was built with it
    except Exception:
        return "AVIF" if head[8:].startswith(b"avi") else "HEIC"
    return ""


@cache
def _formats() -> tuple[str, ...]:
    """Of FORMATS those that this PIL was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_rgb(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB. Raises InputError for a missing, broken, foreign or 16-bit file."""
    return rgb_of(open_image(path), path)


def rgb_of(image: Image.Image, path: Path) -> np.ndarray:
    """A decoded image as (H, W, 3) uint8 RGB, upright. Raises InputError, which names `path`, where that cannot be."""
    if image.mode.startswith(("I", "F")):  # PIL would cut them off at 255
        raise InputError(f"{path}: an image needs 8 bits a channel, this one is {image.mode}", "Convert it to 8 bits")
    try:
        return np.asarray(upright(image).convert("RGB"))
    except ValueError as error:  # a colour space that PIL has no way from
        raise InputError(f"{path}: its colours cannot be read ({error})", "Convert it to RGB") from error


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; one that cannot be read counts as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF is a format of its own, with damage of its own
        return image
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the values of the EXIF orientation; 1 is upright."""


def read_labels(path: Path) -> np.ndarray:
    """A single-channel label PNG as (H, W) int32 pixel values.

    Raises:
        InputError: missing or unreadable, or a colour image where ids are expected.
    """
    return labels_of(open_image(path, "label image"), path)


def labels_of(image: Image.Image, path: Path) -> np.ndarray:
    """A decoded label image as (H, W) int32 pixel values. Raises InputError, which names `path`, for a colour image."""
    if image.mode not in ("L", "P", "I", "I;16", "1"):
        raise InputError(
            f"{path}: a label image needs one channel of class ids, this one is {image.mode}",
            "If it holds colours, convert them to ids first",
        )
    return np.asarray(image).astype(np.int32)


def read_segment_ids(path: Path) -> np.ndarray:
    """A COCO panoptic PNG as (H, W) int32 ids, R + 256·G + 65536·B; 0 is void. Raises InputError as above."""
    image = open_image(path, "panoptic image")
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(f"{path}: a panoptic PNG needs three channels, this one is {image.mode}")
    rgb = np.asarray(image)[..., :3].astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
