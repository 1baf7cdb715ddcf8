"""Logits that are multiples of a step, stored as integers so that `zarr.open` gives them back as float32.

The chain is of zarr's own codecs: `fixedscaleoffset` makes integers of 16 bits (of 32 where those are too few), `blosc`
groups high and low bytes and compresses them with zstd. `encode` and `decode` do the same as zarr, only faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_STEPS = 2**24
"""Steps that a logit may be away from 0: float32 has no multiples in between beyond."""
_IN_16_BITS = 2**15 - 1
_NAMES = ["numcodecs.fixedscaleoffset", "bytes", "blosc"]
_BLOSC: dict[str, Any] = {"cname": "zstd", "clevel": 1, "blocksize": 2**19}
"""Larger blocks gain what a higher level would, in a sixth of the time; the level stands in no fingerprint."""
_WARNING = "Numcodecs codecs are not in the Zarr version 3 specification"
_CACHED = 2**16
"""Numbers that become floats at a time, so that those stay in a core's cache until they are scaled."""


def kind_of(values: np.ndarray, step: float) -> np.dtype:
    """Choose the integer dtype in which float32 multiples of a step, a power of two ≤ 1, are stored."""
    largest = max(-float(values.min()), float(values.max())) if values.size else 0.0
    return np.dtype("<i2" if largest <= _IN_16_BITS * step else "<i4")


def codecs(kind: np.dtype, step: float) -> dict[str, Any]:
    """Make the arguments of `zarr.create_array` for float32 multiples of a step, stored as integers of a kind."""
    import warnings

    from zarr.codecs import BloscCodec
    from zarr.codecs.numcodecs import FixedScaleOffset

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _WARNING)
        filters = [FixedScaleOffset(offset=0, scale=round(1 / step), dtype="<f4", astype=kind.str)]
    return {"filters": filters, "compressors": BloscCodec(**_BLOSC, shuffle="shuffle", typesize=kind.itemsize)}


def encode(values: np.ndarray, kind: np.dtype, step: float) -> bytes:
    """Encode a non-empty array of float32 multiples of a step as one chunk."""
    from numcodecs import Blosc

    steps = np.empty(values.shape, kind)  # in the order of rows, whatever that of `values` is
    np.multiply(values, np.float32(1 / step), out=steps, casting="unsafe")
    chunk: bytes = Blosc(**_BLOSC, shuffle=Blosc.SHUFFLE).encode(steps)
    return chunk


def wrote(metadata: dict[str, Any]) -> bool:
    """Tell if an array has the chain that `codecs` makes, by the content of its zarr.json."""
    return [codec.get("name") for codec in metadata.get("codecs", [])] == _NAMES


def decode(metadata: dict[str, Any], chunk: bytes) -> np.ndarray:
    """Decode the array that `codecs` wrote as one chunk, as zarr would.

    Args:
        metadata: content of the array's zarr.json.
        chunk: the only chunk's bytes.
    Raises:
        Exception: damaged bytes fail in many ways.
    """
    from numcodecs import Blosc

    made = metadata["codecs"][0]["configuration"]
    kind = np.dtype(made["astype"])
    steps = np.frombuffer(Blosc().decode(chunk), kind)
    values, step = np.empty(steps.size, np.float32), np.float32(1 / made["scale"])
    for start in range(0, steps.size, _CACHED):
        piece = values[start : start + _CACHED]
        piece[...] = steps[start : start + _CACHED]
        piece *= step
    return values.reshape(metadata["shape"])
