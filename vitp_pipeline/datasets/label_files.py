"""Read label images as stored: samples, bit depth and palette, before their meaning is decided.

Only what a file holds exactly gets through: no lossy compression, no samples that a decoder stretches or cuts off, no
transparency that says more than the values do. `label_values` decides whether indices or gray levels are the labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.images import ImageFile, open_image
from vitp_pipeline.errors import InputError

LOSSLESS = ("PNG", "BMP", "DIB", "GIF", "PPM")
LOSSLESS_TIFF = (
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "lzma",
    "zstd",
    "group3",
    "group4",
)

GRAY_BITS = {
    **{"1": 1, "1;R": 1, "L;2": 2, "L;2R": 2, "L;4": 4, "L;4R": 4, "L": 8, "L;R": 8, "LA": 8},
    **dict.fromkeys(("I;12", "I;16", "I;16B", "I;16N", "I;16R", "I;16S", "I;16BS", "I;16NS"), 16),
    **dict.fromkeys(("I", "I;32N", "I;32S", "I;32BS", "I;32NS", "I;32", "I;32B"), 32),
}
"""Bits of a gray sample by `ImageFile.raw_mode`."""
PALETTE = ("P", "P;1", "P;2", "P;4", "P;R", "P;1R", "P;2R", "P;4R")
COLOR = ("RGB", "RGB;R", "RGBX", "RGBA", "BGR", "BGRX", "BGRA")
"""Those of 8 bits a channel."""


class ColorsError(InputError):
    """A label image holds colors where one number a pixel is expected."""


@dataclass(frozen=True)
class LabelFile:
    """The samples of a label image.

    Attributes:
        samples: (H, W) uint8, or int32 where they have more than 8 bits: palette indices or gray levels, unscaled.
        bits: of a gray sample, 1 to 32; of a palette's index always 8.
        palette: (N, 3) int16 colors 0..255 of all indices that occur, −1 of those that it lacks; None of gray samples.
        form: in words: `4-bit gray`, `gray palette`, `color palette`, `8-bit RGB`.
        orientation: as the file states it.
    """

    path: Path
    samples: np.ndarray = field(repr=False)
    bits: int
    palette: np.ndarray | None = field(repr=False)
    form: str
    orientation: int | None = None


def read_label_file(path: Path, upright: bool = True) -> LabelFile:
    """Read the samples of a label image.

    Args:
        upright: turn them by the orientation that the file states, if it states one.
    Raises:
        InputError: missing, damaged, stored with loss, or in a way from which the samples cannot be had exactly.
        ColorsError: of three channels that are not equal.
    """
    image = open_exactly(path, "label image")
    mode, form, palette = image.raw_mode, form_of(image), None
    bits, pixels = GRAY_BITS.get(mode, 8), np.asarray(image.pixels)
    if mode in PALETTE:
        colors = _colors(image)
        missing = max(0, int(pixels.max()) + 1 - len(colors))
        palette = np.concatenate([colors, np.full((missing, 3), -1, np.int16)])
        form = "color palette" if missing else form  # no optimizer leaves out an entry that it uses
    elif mode in COLOR:
        if (pixels[..., :1] != pixels[..., :3]).any():
            raise ColorsError(
                f"{path}: a label image needs one channel of class ids, this one has colors ({image.pixels.mode}); if "
                'they stand for classes, set kind = "color-png" under [labels] in the manifest, and class colors'
            )
        pixels = pixels[..., 0]
    elif mode == "LA":
        pixels = pixels[..., 0]
    elif bits in (2, 4):  # PIL stretches them to 0..255
        pixels = pixels // np.uint8(255 // (2**bits - 1))
    elif mode not in GRAY_BITS:
        raise InputError(
            f"{path}: a label image needs one channel of class ids, this one is stored as {mode}", "Save it as PNG"
        )
    samples = image.turn(pixels.astype(np.uint8 if bits <= 8 else np.int32, copy=False), upright)
    return LabelFile(path, samples, bits, palette, form, image.orientation)


def read_segment_ids(path: Path, upright: bool = True) -> np.ndarray:
    """Read a COCO panoptic PNG as (H, W) int32 ids, R + 256·G + 65536·B; 0 is void. Raises as `label_colors`."""
    return segment_ids(open_exactly(path, "panoptic image"), upright)


def segment_ids(image: ImageFile, upright: bool = True) -> np.ndarray:
    """Read `read_segment_ids` from a file that is open."""
    rgb = label_colors(image, "panoptic image", upright).astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def label_colors(image: ImageFile, what: str, upright: bool = True) -> np.ndarray:
    """Read a label image whose numbers are the colors that it shows, be they stored as such, as indices into a palette
    or as gray, as (H, W, 3) uint8 RGB. Raises InputError where they have more than 8 bits a channel.
    """
    if image.raw_mode not in (*COLOR, *PALETTE) and GRAY_BITS.get(image.raw_mode, 16) > 8:
        raise InputError(
            f"{image.path}: this {what} needs three channels of 8 bits, it is stored as {image.raw_mode}",
            "Save it as 8-bit RGB",
        )
    return image.rgb(upright)


def form_of(image: ImageFile) -> str:
    """Describe the storage form of a label image in words."""
    if image.raw_mode in PALETTE:
        colors = _colors(image)
        return "gray palette" if (colors == colors[:, :1]).all() else "color palette"
    if image.raw_mode in COLOR:
        return f"8-bit {image.pixels.mode}"
    return f"{GRAY_BITS[image.raw_mode]}-bit gray" if image.raw_mode in GRAY_BITS else image.raw_mode


def _colors(image: ImageFile) -> np.ndarray:
    return np.array(image.pixels.getpalette("RGB"), np.int16).reshape(-1, 3)


def open_exactly(path: Path, what: str) -> ImageFile:
    """Open a label image. Raises InputError where its format or its transparency leaves open what the values were."""
    image = open_image(path, what)
    kind, _, compression = image.format.partition(" ")
    if not (kind in LOSSLESS or (kind == "TIFF" and compression in LOSSLESS_TIFF)):
        raise InputError(
            f"{path}: this {what} is {image.format}, which may not store label values exactly",
            "Export it again from its source, as PNG",
        )
    if (count := getattr(image.pixels, "n_frames", 1)) > 1:
        raise InputError(
            f"{path}: this {what} holds {count} images, and it is unknown which one has the labels",
            "Save only that one",
        )
    if image.raw_mode in ("LA", "RGBA", "BGRA"):
        _require_needless_alpha(np.asarray(image.pixels), path, what)
    return image


def _require_needless_alpha(pixels: np.ndarray, path: Path, what: str) -> None:
    """Raise InputError unless equal values are equally transparent: then leaving it out loses nothing."""
    values, alpha = pixels[..., :-1].astype(np.int64), pixels[..., -1]
    if (alpha == alpha.flat[0]).all():
        return
    keys = values @ (256 ** np.arange(1, values.shape[-1] + 1))
    if len(np.unique(keys + alpha)) > len(np.unique(keys)):
        raise InputError(
            f"{path}: pixels of one value differ in transparency in this {what}, so transparency carries information",
            "Save it without transparency",
        )
