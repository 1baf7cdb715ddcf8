"""Image files to arrays, and nothing unreadable gets through."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitp_pipeline.datasets.storage import read_bytes
from vitp_pipeline.errors import InputError

# PIL guards against decompression bombs by raising above twice this number of pixels.
Image.MAX_IMAGE_PIXELS = 250_000_000


def open_image(path: Path, what: str = "image") -> Image.Image:
    """A decoded image file, on disk or in an archive. Raises InputError when it is missing or cannot be decoded."""
    try:
        image = Image.open(io.BytesIO(read_bytes(path)))
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


def read_rgb(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB. Raises InputError for a missing, broken, foreign or 16-bit file."""
    return rgb_of(open_image(path), path)


def rgb_of(image: Image.Image, path: Path) -> np.ndarray:
    """A decoded image as (H, W, 3) uint8 RGB. Raises InputError, which names `path`, for a 16-bit one."""
    if image.mode.startswith(("I", "F")):  # PIL would cut them off at 255
        raise InputError(f"{path}: an image needs 8 bits a channel, this one is {image.mode}", "Convert it to 8 bits")
    return np.asarray(image.convert("RGB"))


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
