"""Stored features of a frozen backbone: a cache in the layout of a stage, RUN/features/FINGERPRINT.

Array of a part, for an image with id ID: `features/ID` (layer, patch, channel) float16, the patches behind every
feature layer of the image resized to the classifier's input, or of its mirror image: each kind is an artifact of its
own. Rows of its index: see `feature_schema`. An image is told by the SHA-256 of its file, so another file of the same
name has no features. Nothing needs these files: what is missing or damaged is computed again.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.array_names import array_name
from vitp_pipeline.artifacts.parts import ArrayReader
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError, StorageError, UserError
from vitp_pipeline.geometry import Size
from vitp_pipeline.runtime.progress import say

if TYPE_CHECKING:
    import pyarrow as pa

DIMENSIONS = ("layer", "patch", "channel")


def feature_schema(fingerprint: str) -> pa.Schema:
    """Return the columns of an index: an image's id, outcome, (height, width) and the SHA-256 of its file."""
    import pyarrow as pa

    text = [(name, pa.string()) for name in ("image_id", "status", "error")]
    size = [("height", pa.int32()), ("width", pa.int32())]
    about = json.dumps({"fingerprint": fingerprint})
    return pa.schema([*text, *size, ("file_sha256", pa.string())], metadata={"vitp": about})


def array_of_image(image_id: str) -> str:
    """Return the name of an image's array."""
    return f"features/{array_name(image_id)}"


@dataclass(frozen=True)
class StoredImage:
    """An image whose features are stored: its (height, width), and the SHA-256 of its file."""

    size: Size
    file_sha256: str


@dataclass
class _Part:
    rows: dict[str, StoredImage]
    arrays: ArrayReader


@dataclass
class FeatureStore:
    """Features of a split's images, read as parts are committed, by this task or another. Its threads may share it.

    Attributes:
        run: the artifact.
        damaged: (shard, part) of the parts that could not be read; they are not read again.
    """

    run: StageRun
    damaged: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._parts: dict[tuple[int, int], _Part] = {}
        self._opening, self._reading = threading.Lock(), threading.Lock()
        self._places = {
            image_id: (shard, part)
            for shard in range(self.run.shards)
            for part, images in enumerate(self.run.parts(shard))
            for image_id in images
        }

    def find(self, image_id: str) -> StoredImage | None:
        """Find an image; None if its features are not there."""
        part = self._open(image_id)
        return part.rows.get(image_id) if part else None

    def read(self, image_id: str) -> np.ndarray | None:
        """Read an image's features, (F, P, D) float16; None if they are not there, or damaged."""
        if (part := self._open(image_id)) is None or image_id not in part.rows:
            return None
        try:
            with self._reading:  # a zip counts its readers without a lock of its own
                return part.arrays.read(array_of_image(image_id))
        except (CorruptError, StorageError) as error:
            self._lose(self._places[image_id], error)
            return None

    def _open(self, image_id: str) -> _Part | None:
        place = self._places.get(image_id)
        if place is None or place in self.damaged:
            return None
        with self._opening:
            if place not in self._parts:
                try:
                    if self.run.holds(*place):
                        table = self.run.read_rows(*place)
                        self._parts[place] = _Part(_rows(table), self.run.open_arrays(*place, table))
                except (CorruptError, StorageError) as error:
                    self._lose(place, error)
        return self._parts.get(place)

    def _lose(self, place: tuple[int, int], error: UserError) -> None:
        if place not in self.damaged:
            self.damaged.add(place)
            say(f"{error.message}; its features are computed again")
        self._parts.pop(place, None)


def _rows(table: pa.Table) -> dict[str, StoredImage]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return {
        row["image_id"]: StoredImage((row["height"], row["width"]), row["file_sha256"])
        for row in rows
        if row["status"] == "ok"
    }
