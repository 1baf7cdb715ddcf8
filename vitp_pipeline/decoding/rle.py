"""Binary masks as run lengths (COCO's RLE): a mask of six megapixels takes kilobytes."""

from __future__ import annotations

from typing import Any

import numpy as np

Rle = dict[str, Any]
"""{"size": [height, width], "counts": bytes}, as pycocotools has it."""


def encode_mask(mask: np.ndarray) -> Rle:
    """Encode an (H, W) bool mask."""
    from pycocotools import mask as coco

    rle: Rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return rle


def encode_part(part: np.ndarray, top: int, left: int, size: tuple[int, int]) -> Rle:
    """Encode a mask of a size (height, width) that is true only in (r, c) bool `part`, which begins at (top, left)."""
    from pycocotools import mask as coco

    columns = np.zeros(size[::-1], np.uint8)
    columns[left : left + part.shape[1], top : top + part.shape[0]] = part.T
    rle: Rle = coco.encode(columns.T)
    return rle


def decode_mask(rle: Rle) -> np.ndarray:
    """Decode to (H, W) bool. For run lengths made here or checked by `records`: pycocotools trusts them."""
    from pycocotools import mask as coco

    return np.asarray(coco.decode(rle)).astype(bool)


def mask_area(rle: Rle) -> int:
    """Count the pixels of a mask."""
    from pycocotools import mask as coco

    return int(coco.area(rle))


def split_components(rle: Rle) -> list[Rle]:
    """Split a mask into its connected pieces (4 neighbors), in the order of their first pixels by rows; a mask of one
    piece is returned as it is, one without a pixel as none.
    """
    from scipy import ndimage

    top, left, box = decode_box(rle)
    pieces, count = ndimage.label(box)
    if count == 1:
        return [rle]
    found = []
    for number in range(1, count + 1):
        mask = np.zeros(rle["size"], bool)
        mask[top : top + box.shape[0], left : left + box.shape[1]] = pieces == number
        found.append(encode_mask(mask))
    return found


def decode_box(rle: Rle) -> tuple[int, int, np.ndarray]:
    """Decode a mask inside its bounding box; for run lengths as `decode_mask` takes them.

    Returns:
        (top, left) of the box, and (h, w) bool; (0, 0) and 0×0 for a mask without a pixel.
    """
    height = int(rle["size"][0])
    counts = counts_of_text(rle["counts"])
    stops = np.cumsum(counts)[1::2]
    starts = stops - counts[1::2]
    some = stops > starts
    starts, stops = starts[some], stops[some]
    if not len(starts):
        return 0, 0, np.zeros((0, 0), bool)
    left, right = int(starts[0]) // height, -(-int(stops[-1]) // height)
    top, bottom = 0, height
    if (starts // height == (stops - 1) // height).all():  # no run goes on in the next column
        top, bottom = int((starts % height).min()), int(((stops - 1) % height).max()) + 1
    edges = np.stack([starts, stops], 1).ravel() - left * height
    lengths = np.diff(edges, prepend=0, append=(right - left) * height)
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return top, left, columns.reshape(right - left, height).T[top:bottom]


def counts_of_text(text: str | bytes) -> np.ndarray:
    """Decode COCO's compressed run lengths to (R,) int64.

    A number is written in groups of five bits, the lowest first, a character each, with 32 added while more follow and
    the last one's highest bit as the sign. From the fourth run on it is the difference to the run before the last.

    Raises:
        ValueError: other characters, a number of more than 32 bits, or an end in the middle of one; the text continues
            "the counts …".
    """
    try:
        groups = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8) - np.uint8(48)
    except UnicodeEncodeError:
        groups = np.array([255], np.uint8)
    last = groups < 32
    if not (len(groups) and groups.max() < 64 and last[-1]):
        raise ValueError(f"are {text[:40]!a}, no compressed run lengths")
    ends = np.flatnonzero(last)
    starts = np.append(0, ends + 1)[:-1]
    lengths = ends + 1 - starts
    if lengths.max() > 7:
        raise ValueError("hold a number of more than 32 bits")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & 31).astype(np.int64) << (5 * place), starts)
    values -= np.where(groups[ends] & 16, np.left_shift(1, 5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
