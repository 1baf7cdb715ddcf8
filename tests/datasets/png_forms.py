"""Write PNG files of any form with zlib alone, so that tests know the samples without an image library."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, step of rows and step of columns of each pass of an interlaced file."""


def write_png(
    samples: np.ndarray,
    kind: int = GRAY,
    bits: int = 8,
    palette: np.ndarray | None = None,
    transparency: bytes = b"",
    interlaced: bool = False,
    orientation: int = 0,
    after: bool = False,
) -> bytes:
    """Encode samples as a PNG file.

    Args:
        samples: (H, W) or (H, W, C) integers, stored as they are.
        palette: (N, 3) uint8.
        transparency: content of the tRNS chunk.
        orientation: EXIF orientation to state; 0 = none. after: behind the image data instead of before them.
    """
    pixels = samples.reshape(*samples.shape[:2], CHANNELS[kind])
    height, width = pixels.shape[:2]
    passes = [pixels[top::down, left::right] for top, left, down, right in ADAM7] if interlaced else [pixels]
    rows = b"".join(b"\0" + _packed(row, bits) for part in passes if part.size for row in part)
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, int(interlaced))),
        (b"PLTE", b"" if palette is None else palette.astype(np.uint8).tobytes()),
        (b"tRNS", transparency),
        (b"eXIf", exif if orientation and not after else b""),
        (b"IDAT", zlib.compress(rows)),
        (b"eXIf", exif if orientation and after else b""),
    ]
    body = b"".join(_chunk(name, content) for name, content in chunks if content)
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IEND", b"")


def _packed(row: np.ndarray, bits: int) -> bytes:
    flat = row.ravel()
    assert flat.max(initial=0) < 1 << bits
    if bits == 16:
        return flat.astype(">u2").tobytes()
    planes = (flat[:, None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(planes.astype(np.uint8).ravel()).tobytes()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
