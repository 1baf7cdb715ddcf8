"""A figure that may not exist: mIoU without a labeled pixel, PQ without a segment, AP without an object to find.

Inside arrays it is NaN; everywhere else (results, JSON, pages, tables) it is None. `plain` is the one way from the
first to the second, and `percent` and `signed` write both as a dash. So no NaN reaches a file, and nothing computes
with None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

DASH = "–"
"""Shown in place of a figure that does not exist."""

Figure = float | None
_T = TypeVar("_T")


def plain(value: Any) -> Any:
    """Any tree of results as JSON has it: arrays become lists, numpy's numbers Python's, and NaN or ±∞ None."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # an array of numpy, or one of its numbers
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def difference(after: Figure, before: Figure) -> Figure:
    """`after` − `before`, None where either does not exist."""
    return None if after is None or before is None else after - before


def percent(value: Figure, digits: int = 2) -> str:
    """A share in [0, 1] as a percentage, "44.59", or a dash."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def signed(value: Figure, digits: int = 2) -> str:
    """A difference in [−1, 1] in points, "+1.25", or a dash."""
    return DASH if value is None else f"{100 * value:+.{digits}f}"


def span(low: Figure, high: Figure) -> str:
    """An interval in points, "-0.20 to +1.25", or a dash where it does not exist."""
    return DASH if low is None or high is None else f"{signed(low)} to {signed(high)}"


def falling(rows: Iterable[_T], figure: Callable[[_T], Figure]) -> list[_T]:
    """Rows by falling figure, those without one last; equal ones stay in their order."""

    def place(row: _T) -> tuple[bool, float]:
        value = figure(row)
        return value is None, 0.0 if value is None else -value

    return sorted(rows, key=place)
