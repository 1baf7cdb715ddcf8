"""Logits that are multiples of a step, stored as integers so that `zarr.open` gives them back as float32.

The chain is of zarr's own codecs: `fixedscaleoffset` makes integers of 16 bits (of 32 where those are too few), `delta`
takes differences along a row, `fixedscaleoffset` adds 128 (small differences of both signs then share their high
bytes), `blosc` groups high and low bytes and compresses them with zstd. `encode` and `decode` do the same as zarr, only
faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_STEPS = 2**24
"""Steps that a logit may be away from 0: float32 has no multiples in between beyond."""
_IN_16_BITS = 16_000
"""With so many steps differences, 128 added, stay within 16 bits."""
_SHIFT = 128
_NAMES = ["numcodecs.fixedscaleoffset", "numcodecs.delta", "numcodecs.fixedscaleoffset", "bytes", "blosc"]
_BLOSC: dict[str, Any] = {"cname": "zstd", "clevel": 1, "blocksize": 2**19}
"""Larger blocks gain what a higher level would, in a sixth of the time; the level stands in no fingerprint."""
_WARNING = "Numcodecs codecs are not in the Zarr version 3 specification"


def kind_of(values: np.ndarray, step: float) -> np.dtype:
    """The integers that float32 multiples of a step, a power of two ≤ 1, are stored as."""
    largest = max(-float(values.min()), float(values.max())) if values.size else 0.0
    return np.dtype("<i2" if largest <= _IN_16_BITS * step else "<i4")


def codecs(kind: np.dtype, step: float) -> dict[str, Any]:
    """Arguments of `zarr.create_array` for float32 multiples of a step, stored as integers of a kind."""
    import warnings

    from zarr.codecs import BloscCodec
    from zarr.codecs.numcodecs import Delta, FixedScaleOffset

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _WARNING)
        filters = [
            FixedScaleOffset(offset=0, scale=round(1 / step), dtype="<f4", astype=kind.str),
            Delta(dtype=kind.str),
            FixedScaleOffset(offset=-_SHIFT, scale=1, dtype=kind.str, astype=kind.str),
        ]
    return {"filters": filters, "compressors": BloscCodec(**_BLOSC, shuffle="shuffle", typesize=kind.itemsize)}


def encode(values: np.ndarray, kind: np.dtype, step: float) -> bytes:
    """The bytes of float32 multiples of a step, not none, as one chunk."""
    from numcodecs import Blosc

    steps = (values * np.float32(1 / step)).astype(kind).ravel()
    differences = np.diff(steps, prepend=kind.type(0))
    differences += kind.type(_SHIFT)
    chunk: bytes = Blosc(**_BLOSC, shuffle=Blosc.SHUFFLE).encode(differences)
    return chunk


def wrote(metadata: dict[str, Any]) -> bool:
    """Whether an array has the chain of `codecs`, by the content of its zarr.json."""
    chain = metadata.get("codecs", [])
    return [codec.get("name") for codec in chain] == _NAMES and chain[2]["configuration"]["offset"] == -_SHIFT


def decode(metadata: dict[str, Any], chunk: bytes) -> np.ndarray:
    """The array that `codecs` wrote as one chunk, as zarr would give it.

    Args:
        metadata: content of the array's zarr.json.
        chunk: the only chunk's bytes.
    Raises:
        Exception: damaged bytes fail in many ways.
    """
    from numcodecs import Blosc

    made = metadata["codecs"][0]["configuration"]
    kind = np.dtype(made["astype"])
    differences = np.frombuffer(Blosc().decode(chunk), kind) - kind.type(_SHIFT)
    steps = np.cumsum(differences, dtype=kind, out=differences)
    values: np.ndarray = np.multiply(steps, np.float32(1 / made["scale"]), dtype=np.float32)
    return values.reshape(metadata["shape"])
