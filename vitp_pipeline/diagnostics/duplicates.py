"""Images that are in several splits, found by their pixels: a test split of which the training has seen a part."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np


def digest_of_pixels(pixels: np.ndarray) -> int:
    """Return 64 bits of a digest of an image (H, W, 3), whatever file format it came from: of ten million different
    images, two have the same by a chance of 3 in a million.
    """
    own = hashlib.blake2b(str(pixels.shape).encode(), digest_size=8)
    own.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(own.digest())


@dataclass
class SplitPixels:
    """Image ids of a split, and the digests of their pixels."""

    ids: list[str] = field(default_factory=list)
    digests: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, image_id: str, digest: int) -> None:
        self.ids.append(image_id)
        self.digests.append(digest)


def shared_images(splits: Mapping[str, SplitPixels]) -> Iterator[dict[str, Any]]:
    """Yield, for every two splits that share images, `splits` (their names) and `pairs` (ids in the one and the other),
    in the order of the former's ids.
    """
    for (one, first), (other, second) in combinations(splits.items(), 2):
        ours, theirs = (np.frombuffer(each.digests, np.uint64) for each in (first, second))
        common = np.intersect1d(ours, theirs)
        if not len(common):
            continue
        named = {int(theirs[n]): second.ids[n] for n in np.flatnonzero(np.isin(theirs, common))[::-1].tolist()}
        places = np.flatnonzero(np.isin(ours, common)).tolist()
        yield {"splits": [one, other], "pairs": [[first.ids[n], named[int(ours[n])]] for n in places]}
