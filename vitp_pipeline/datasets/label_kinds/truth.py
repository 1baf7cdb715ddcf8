"""Ground truth of an image in one of three forms: a class map, a segment map, or an object list.

All forms have the same methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vitp_pipeline.datasets.annotations import GroundTruthSegment
from vitp_pipeline.datasets.regions import connected_regions, number_type
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.decoding.rle import Rle, decode_mask, encode_mask, mask_area
from vitp_pipeline.geometry import Size


@dataclass(frozen=True)
class GroundTruthInstance:
    """An object of an image.

    Attributes:
        id: as in the annotation; unique in the image.
        category: class index 0..K−1.
        iscrowd: it stands for several objects.
        rle: its mask as run lengths, of (H, W); `mask` decodes it, at every call.
        area: as the annotation file says it, else the mask's pixels.
    """

    id: int
    category: int
    iscrowd: bool
    rle: Rle = field(repr=False)
    area: float

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        return decode_mask(self.rle)


class Truth(Protocol):
    """Ground truth of an image of (H, W)."""

    @property
    def size(self) -> Size:
        """(H, W)."""
        ...

    def semantic(self) -> np.ndarray:
        """(H, W) int16 class indices, IGNORE where there is no label; crowds keep their class."""
        ...

    def regions(self) -> tuple[np.ndarray, np.ndarray]:
        """((H, W) integer numbers 0..S−1 of objects, things and stuff, or IGNORE; (S,) int64 classes)."""
        ...

    def instances(self, things: Sequence[bool]) -> list[GroundTruthInstance]:
        """List the countable objects."""
        ...


@dataclass(frozen=True)
class ClassMap:
    """(H, W) int16 class indices or IGNORE: connected pieces of a class stand for its objects."""

    labels: np.ndarray

    @property
    def size(self) -> Size:
        return self.labels.shape[0], self.labels.shape[1]

    def semantic(self) -> np.ndarray:
        return self.labels

    def regions(self) -> tuple[np.ndarray, np.ndarray]:
        return connected_regions(self.labels)

    def instances(self, things: Sequence[bool]) -> list[GroundTruthInstance]:
        numbers, classes = self.regions()
        return [_instance(n + 1, k, False, numbers == n) for n, k in enumerate(classes.tolist()) if things[k]]


@dataclass(frozen=True)
class SegmentMap:
    """(H, W) int32 ids, 0 = no label, and the segments that have them."""

    ids: np.ndarray
    segments: Sequence[GroundTruthSegment]

    @property
    def size(self) -> Size:
        return self.ids.shape[0], self.ids.shape[1]

    def semantic(self) -> np.ndarray:
        return _replaced(self.ids, {0: IGNORE, **{s.id: s.category for s in self.segments}}, np.dtype(np.int16))

    def regions(self) -> tuple[np.ndarray, np.ndarray]:
        numbers = {0: IGNORE, **{s.id: n for n, s in enumerate(self.segments)}}
        classes = np.array([s.category for s in self.segments], np.int64)
        return _replaced(self.ids, numbers, number_type(len(self.segments))), classes

    def instances(self, things: Sequence[bool]) -> list[GroundTruthInstance]:
        wanted = (s for s in self.segments if things[s.category])
        return [_instance(s.id, s.category, s.iscrowd, self.ids == s.id) for s in wanted]


@dataclass(frozen=True)
class ObjectList:
    """Objects of an image of `size` (H, W), which may overlap: then the smaller one is seen."""

    objects: list[GroundTruthInstance]
    size: Size

    def semantic(self) -> np.ndarray:
        numbers, classes = self.regions()
        return np.asarray(np.append(classes, IGNORE).astype(np.int16)[numbers])  # −1 reads the last

    def regions(self) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.full(self.size, IGNORE, number_type(len(self.objects)))
        order = sorted(enumerate(self.objects), key=lambda entry: (not entry[1].iscrowd, -entry[1].area))
        for number, own in order:
            numbers[own.mask] = number
        return numbers, np.array([own.category for own in self.objects], np.int64)

    def instances(self, things: Sequence[bool]) -> list[GroundTruthInstance]:
        return self.objects


def _instance(number: int, category: int, iscrowd: bool, mask: np.ndarray) -> GroundTruthInstance:
    rle = encode_mask(mask)
    return GroundTruthInstance(number, category, iscrowd, rle, float(mask_area(rle)))


def _replaced(ids: np.ndarray, table: dict[int, int], dtype: np.dtype) -> np.ndarray:
    """Replace ids by the table's values; all ids must be keys. Searching a short table beats sorting an image."""
    keys = np.array(sorted(table))
    return np.array([table[int(key)] for key in keys], dtype)[np.searchsorted(keys, ids)]
