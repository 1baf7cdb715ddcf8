"""Open image files (only this module does): photographs as RGB, and properties that `label_files` needs.

Reading rules (docs/faults.md): the format by content, never by name; of animations the first frame;
photographs upright by their EXIF orientation, as mmcv and detectron2 read them; transparency is left out.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile as ImagePlugin

from vitp_pipeline.decoding.archives import MAX_BYTES, lookalike, read_bytes
from vitp_pipeline.decoding.limits import check_pixels
from vitp_pipeline.errors import InputError, UserError
from vitp_pipeline.geometry import Size

FORMATS = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
"""What PIL reads by itself. Of its other formats some start programs (EPS), and none is one of a dataset."""
Image.MAX_IMAGE_PIXELS = None  # `open_image` has the limit; PIL would warn first, and on every thread


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
        path: for messages.
        pixels: decoded; as stored, or upright where `is_turned`.
        size: (H, W) as stored.
        orientation: 1..8 as EXIF numbers them, 1 being upright; None where the file states none.
        is_turned: PIL has turned the pixels upright by itself, as it does with TIFF files.
        format: PIL's name of it, for TIFF with that of its compression.
        raw_mode: how the decoder unpacks samples in PIL's words (`RGB`, `L;4`, `P;1`, `I;16B`), or a note on why they
            are not what the file stores.
    """

    path: Path
    pixels: Image.Image = field(repr=False)
    size: Size
    orientation: int | None
    is_turned: bool
    format: str
    raw_mode: str

    @property
    def mode(self) -> str:
        """PIL's mode, with the bits of a sample where the file has other than 8."""
        bits = re.search(r"^\w+;(1|2|4|12|16|32)\D*$", self.raw_mode)
        return f"{bits[1]}-bit {self.pixels.mode}" if bits and ";" not in self.pixels.mode else self.pixels.mode

    @property
    def upright_size(self) -> Size:
        """(H, W) once turned upright."""
        return self.size[::-1] if self.orientation in SIDEWAYS else self.size

    def rgb(self, upright: bool = True) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises InputError for 16-bit gray, real numbers and colors that PIL cannot convert."""
        if (mode := self.pixels.mode).startswith(("I", "F")):  # PIL would cut them off at 255
            raise InputError(
                f"{self.path}: an image needs 8 bits a channel, this one is {mode}", "Convert it to 8 bits"
            )
        try:
            return self.turn(np.asarray(self.pixels.convert("RGB")), upright)
        except ValueError as error:  # a color space that PIL has no way from
            raise InputError(f"{self.path}: its colors cannot be read ({error})", "Convert it to RGB") from error

    def turn(self, array: np.ndarray, upright: bool) -> np.ndarray:
        """Rotate an array made from `pixels`, (H, W) or (H, W, C), upright or as stored."""
        orientation = self.orientation or 1
        if orientation == 1 or upright == self.is_turned:
            return array
        if not upright:  # the others undo themselves
            orientation = {6: 8, 8: 6}.get(orientation, orientation)
        if orientation in SIDEWAYS:
            array = array.swapaxes(0, 1)
        if orientation in (3, 4, 7, 8):
            array = array[::-1]
        if orientation in (2, 3, 6, 7):
            array = array[:, ::-1]
        return np.ascontiguousarray(array)


SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations that exchange height and width."""


def read_rgb(path: Path, content: bytes | None = None) -> np.ndarray:
    """Read a photograph as (H, W, 3) uint8 RGB, upright. Raises InputError as `open_image` and `ImageFile.rgb`."""
    return open_image(path, content=content).rgb()


def read_image_file(path: Path, what: str = "image") -> bytes:
    """Read the bytes of an image file. Raises InputError where it is missing or cannot be read."""
    try:
        return read_bytes(path, MAX_BYTES)
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{path}: this {what} does not exist{lookalike(path)}", "Check --data-root and the manifest's splits"
        ) from error
    except Exception as error:
        raise _unreadable(path, what, error) from error


def _unreadable(path: Path, what: str, error: Exception) -> InputError:
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return InputError(f"{path}: this {what} cannot be read ({reason})", "Replace the file, then run again")


def open_image(path: Path, what: str = "image", decode: bool = True, content: bytes | None = None) -> ImageFile:
    """Read an image file, on disk or in an archive.

    Args:
        what: what messages call it.
        decode: False = read only the header: `pixels` and `orientation` are then unreliable.
        content: of the file, where it is read already.
    Raises:
        InputError: missing, too large, of an unsupported format, or it cannot be decoded.
    """
    content = read_image_file(path, what) if content is None else content
    try:
        image = Image.open(io.BytesIO(content), formats=_formats())
        check_pixels(image.width, image.height, f"{path}: this {what}")
        raw_mode, kind, size, orientation = _raw_mode(image, content), str(image.format), image.size[::-1], None
        if kind == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            kind, size = f"TIFF {image.info.get('compression')}", (int(tags[257]), int(tags[256]))
            orientation = _stated_orientation(image)  # PIL forgets it in `load`
        if decode:
            image.load()
            orientation = orientation or _stated_orientation(image)
    except InputError:
        raise
    except Exception as error:  # each format's decoder fails in its own ways on a damaged file
        raise _unreadable(path, what, error) from error
    return ImageFile(path, image, size, orientation, kind.startswith("TIFF"), kind, raw_mode)


def _stated_orientation(image: Image.Image) -> int | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF is a format of its own, with damage of its own
        return None
    return orientation if orientation in range(1, 9) else None


def _raw_mode(image: ImagePlugin, content: bytes) -> str:
    """`ImageFile.raw_mode` of an image that is opened and not yet loaded."""
    if image.format not in ("PNG", "TIFF", "BMP", "DIB", "PPM") or not image.tile:
        return image.mode  # their decoders have one way only
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
        return "white is zero"
    decoder, _, _, given = image.tile[0]
    arguments = (given,) if isinstance(given, str) else tuple(given or ("",))
    if decoder.startswith("ppm") and arguments[-1] not in (255, 65535):  # PIL stretches them to 8 or 16 bits
        return f"samples up to {arguments[-1]}"
    if image.format in ("BMP", "DIB") and image.mode in ("1", "L"):  # gray palettes, which PIL leaves out
        start = 14 if image.format == "BMP" else 0
        at = start + (10 if content[start] == 12 else 14)
        bits = int.from_bytes(content[at : at + 2], "little")
        if bits != (1 if image.mode == "1" else 8):
            return f"BMP of {bits} bits"
    return str(arguments[0])


RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
"""What cameras write before they make a picture of it. Many are TIFF files whose first image is a thumbnail."""

_HEIF = (b"hei", b"hev", b"mif1", b"msf1", b"avif", b"avis")
"""How the brands of ISO 23008-12 (and AVIF) that stand for pictures begin."""


def unread_format(path: Path) -> str:
    """Name the format of a photograph that phones and cameras make and this PIL does not read; else ""."""
    try:
        content = b"" if path.suffix.lower() in RAW else read_bytes(path)
    except (OSError, UserError):
        return ""  # `open_image` says why
    return unread_content(path, content)


def unread_content(path: Path, content: bytes) -> str:
    """Name that format, of a file that is read already; else ""."""
    if path.suffix.lower() in RAW:
        return f"RAW ({path.suffix.lower()})"
    if not (content[4:8] == b"ftyp" and content[8:12].startswith(_HEIF)):
        return ""
    try:
        Image.open(io.BytesIO(content), formats=_formats()).close()  # AVIF, where PIL was built with it
    except Exception:
        return "AVIF" if content[8:].startswith(b"avi") else "HEIC"
    return ""


@cache
def _formats() -> tuple[str, ...]:
    """Of FORMATS those that this PIL was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
