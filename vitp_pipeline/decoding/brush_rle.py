"""Label Studio's run lengths of brush masks: a stream of bits, of the four channels of an RGBA image.

    32 bits  number of values, 4·H·W
     5 bits  bits of a value, minus 1
    4 × 4    bits of a run's length, minus 1, of four sizes of runs
    then     1 bit: whether a run of one value follows, or single values; 2 bits: the size of the length; the length,
             minus 1; the value, or the values

As its front end writes it (thi.ng's rle-pack); bytes are a JSON list of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANNELS, WORD = 4, 8
SIZES = (3, 4, 8, 16)
"""Bits of a run's length, of the four sizes that are written."""
_HEAD = 32 + 5 + 4 * len(SIZES)


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode an (H, W) bool mask as the list of bytes of a brush mask, 0 or 255 in all channels."""
    values = np.asarray(mask, bool).ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges]).astype(np.int64)
    lengths = np.diff(np.append(starts, len(values))) * CHANNELS if len(values) else np.zeros(0, np.int64)
    pieces = [f"{len(values) * CHANNELS:032b}", f"{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=False):
        value = "11111111" if values[start] else "00000000"
        while length > 0:
            run = min(length, 1 << SIZES[-1])
            kind = next(k for k, size in enumerate(SIZES) if run <= 1 << size)
            pieces.append(f"1{kind:02b}{run - 1:0{SIZES[kind]}b}{value}")
            length -= run
    bits = "".join(pieces)
    bits += "0" * (-len(bits) % 8)
    return np.packbits(np.frombuffer(bits.encode("ascii"), np.uint8) - np.uint8(48)).tolist()


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Decode to (H, W) bool: where the last channel, the opacity, is not 0.

    Raises:
        ValueError: no such run lengths, or of another size; the text continues "the run lengths …".
    """
    try:
        raw = np.asarray(rle, np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("are not a list of bytes") from error
    if raw.ndim != 1 or not len(raw) or raw.min() < 0 or raw.max() > 255:
        raise ValueError("are not a list of bytes")
    bits = np.unpackbits(raw.astype(np.uint8))
    text = (bits + np.uint8(48)).tobytes().decode("ascii")
    count = CHANNELS * size[0] * size[1]
    if len(text) < _HEAD or int(text[:32], 2) != count:
        raise ValueError(f"are not of {size[0]}×{size[1]} pixels")
    word = int(text[32:37], 2) + 1
    sizes = [int(text[place : place + 4], 2) + 1 for place in range(37, _HEAD, 4)]
    if word > 16:
        raise ValueError(f"have values of {word} bits")
    found, place, done = np.zeros(count, np.uint16), _HEAD, 0
    while done < count:
        if place + 3 > len(text):
            raise ValueError("end too early")
        same, kind = text[place] == "1", sizes[int(text[place + 1 : place + 3], 2)]
        length = int(text[place + 3 : place + 3 + kind] or "0", 2) + 1
        place += 3 + kind
        stop = min(done + length, count)
        width = word if same else word * (stop - done)
        if place + width > len(text):
            raise ValueError("end too early")
        if same:
            found[done:stop] = int(text[place : place + word], 2)
        else:
            weights = 1 << np.arange(word - 1, -1, -1)
            found[done:stop] = bits[place : place + width].reshape(-1, word) @ weights
        place, done = place + width, stop
    return np.asarray(found.reshape(*size, CHANNELS)[..., -1] > 0)
