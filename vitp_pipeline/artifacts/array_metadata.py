"""Metadata of a part's arrays (zarr.json), checked before any of their bytes becomes numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vitp_pipeline.artifacts.quantized_array import decode, wrote
from vitp_pipeline.errors import InputError

_CODECS = {"bytes", "blosc", "numcodecs.fixedscaleoffset"}
LARGEST = 1 << 32
"""Bytes that are read at once; the masks of an image at the image's own size are a tenth of it."""


def check_metadata(metadata: dict[str, Any], by_plane: bool = False) -> None:
    """Refuse an array that was not written here: its metadata could name any codec and any size.

    Args:
        by_plane: it will be read plane by plane.
    Raises:
        ValueError: it was not written here.
        InputError: its planes are readable, but too many to be read at once.
    """
    odd = {str(codec.get("name")) for codec in metadata["codecs"]} - _CODECS
    if metadata["zarr_format"] != 3 or odd:
        raise ValueError(f"codecs {', '.join(sorted(odd))[:80]}")
    shape, kind = metadata["shape"], np.dtype(metadata["data_type"])
    sides = [*shape, *metadata["chunk_grid"]["configuration"]["chunk_shape"]]
    planes = has_planes(metadata)
    at_once = shape[1:] if planes else shape
    if not all(type(side) is int and 0 <= side < 1 << 31 for side in sides):
        raise ValueError(f"the shape {str(shape)[:80]}")
    if math.prod(at_once) * kind.itemsize > LARGEST:
        raise ValueError(f"the shape {str(shape)[:80]}")
    if kind.kind not in "biuf":
        raise ValueError("no numbers")
    if planes and not by_plane and (size := math.prod(shape) * kind.itemsize) > LARGEST:
        raise InputError(
            f"{shape[0]} masks of {shape[2]}×{shape[1]} are {size / 1e9:.1f} GB as floats, and at most "
            f"{LARGEST / 1e9:.1f} GB are read at once",
            "Import fewer masks, or masks of a smaller image",
        )


def has_planes(metadata: dict[str, Any]) -> bool:
    """Tell if an array is several planes, each a chunk: so large binary masks are stored."""
    shape, chunks = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
    return len(shape) == 3 and shape[0] > 1 and chunks == [1, *shape[1:]]


def is_plain(metadata: dict[str, Any]) -> bool:
    """Tell if an array is one chunk of little-endian numbers that blosc compressed."""
    codecs = metadata.get("codecs", [])
    return (
        _is_blosc(codecs)
        and metadata["chunk_grid"]["configuration"]["chunk_shape"] == metadata["shape"]
        and isinstance(metadata["data_type"], str)
    )


def _is_blosc(codecs: list[dict[str, Any]]) -> bool:
    return [codec.get("name") for codec in codecs] == ["bytes", "blosc"] and (
        codecs[0].get("configuration", {}).get("endian", "little") == "little"
    )


def decode_plain(metadata: dict[str, Any], chunk: bytes) -> np.ndarray:
    """Decode the only chunk of a plain array. Damaged bytes fail in many ways."""
    from numcodecs import Blosc

    kind = np.dtype(metadata["data_type"]).newbyteorder("<")
    return np.frombuffer(Blosc().decode(chunk), kind).reshape(metadata["shape"]).copy()


def decode_plane(metadata: dict[str, Any], chunk: bytes) -> np.ndarray:
    """Decode one plane, (h, w), of an array that has them. Damaged bytes fail in many ways."""
    alone = {**metadata, "shape": metadata["shape"][1:]}
    if wrote(metadata):
        return decode(alone, chunk)
    if not _is_blosc(metadata["codecs"]):
        raise ValueError("codecs of no plane")
    return decode_plain(alone, chunk)
