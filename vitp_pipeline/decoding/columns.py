"""Read a key of millions of foreign records as a column of numbers; an invalid record is noted, the others are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

from vitp_pipeline.decoding.records import box_of, real_number, shown, whole_number
from vitp_pipeline.errors import InputError

_ABSENT = object()
_PLAIN = {int, float, type(None)}


class Columns:
    """Columns of numbers from records.

    Attributes:
        odd: by row, the first fault of the record; its numbers are then meaningless.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.records = records
        self.odd: dict[int, str] = {}

    def whole(self, key: str) -> np.ndarray:
        """Take a key that every record must have as (N,) int64."""
        values = [record.get(key, _ABSENT) for record in self.records]
        if set(map(type, values)) <= {int}:
            with suppress(OverflowError):
                return np.array(values, np.int64)
        return self._one_by_one(np.zeros(len(values), np.int64), enumerate(values), key, whole_number)

    def real(self, key: str) -> np.ndarray:
        """Take a key as (N,) float64, NaN where it is absent or null."""
        values = [record.get(key) for record in self.records]
        if set(map(type, values)) <= _PLAIN:
            with suppress(OverflowError):
                column = np.array(values, np.float64)
                if np.isfinite(column).sum() == len(values) - values.count(None):
                    return column
        some = ((row, value) for row, value in enumerate(values) if value is not None)
        return self._one_by_one(np.full(len(values), np.nan), some, key, real_number)

    def flags(self, key: str) -> np.ndarray:
        """Take a key, 0 or 1, as (N,) bool, False where it is absent or null."""
        values = [record.get(key) or False for record in self.records]
        if set(map(type, values)) <= {int, bool} and set(values) <= {0, 1}:
            return np.array(values, np.bool_)
        return self._one_by_one(np.zeros(len(values), np.bool_), enumerate(values), key, _flag)

    def boxes(self, key: str) -> np.ndarray:
        """Take a COCO box as (N, 4) float64, NaN where it is absent; anything but four finite numbers is odd."""
        boxes = [record.get(key, _ABSENT) for record in self.records]
        rows = [row for row, box in enumerate(boxes) if box is not _ABSENT]
        some = [boxes[row] for row in rows]
        column = np.full((len(boxes), 4), np.nan)
        if all(type(box) is list and len(box) == 4 for box in some):
            flat = list(chain.from_iterable(some))
            if set(map(type, flat)) <= {int, float}:
                with suppress(OverflowError):
                    column[rows] = np.array(flat, np.float64).reshape(-1, 4)
                    if np.isfinite(column[rows]).all():
                        return column
        return self._one_by_one(column, zip(rows, some, strict=True), key, box_of)

    def _one_by_one(
        self, column: np.ndarray, values: Iterable[tuple[int, Any]], key: str, check: Callable[[Any, str], Any]
    ) -> np.ndarray:
        for row, value in values:
            try:
                if value is _ABSENT:
                    raise InputError(f"it has no `{key}`")
                column[row] = check(value, f"its `{key}`")
            except InputError as error:
                self.odd.setdefault(row, error.message)
        return column


def _flag(value: Any, where: str) -> bool:
    if type(value) in (int, float, bool) and value in (0, 1):
        return bool(value)
    raise InputError(f"{where} is {shown(value)}, neither 0 nor 1")
