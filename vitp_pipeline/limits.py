"""Which values a setting may have, and what a person is told of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitp_pipeline.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What a setting's value must keep to. A number lies between a lower and an upper end, or above a lower one of 0.

    Attributes:
        least, most: ends that the value may have.
        above, below: ends that it may not have, in place of those.
        choices: the strings that it may be; of a tuple's elements: at least one of them, each once.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, high = self._ends
        alone = low if high is None else high if low is None else 0
        if alone not in (None, 0):
            raise TypeError(f"{self}: give both ends, or a lower one of 0")

    def check(self, name: str, value: Any, where: str) -> None:
        """Raises UsageError for a value of the right type that is outside."""
        if self.choices:
            self._check_choice(name, value, where)
        low, high = self._ends
        if low is None:
            return
        if high is None:
            if value < 0 or (self.above is not None and value == 0):
                what = "be positive" if self.above is not None else "not be negative"
                raise UsageError(f"{where} {name} = {value:g} must {what}")
            return
        enough = value >= low if self.above is None else value > low
        little = value <= high if self.below is None else value < high
        if not (enough and little):  # nan is neither
            ends = f"{'[' if self.above is None else '('}{low:g}, {high:g}{']' if self.below is None else ')'}"
            raise UsageError(f"{where} {name} = {value:g} is outside {ends}")

    @property
    def _ends(self) -> tuple[float | None, float | None]:
        low = self.above if self.least is None else self.least
        return low, self.below if self.most is None else self.most

    def _check_choice(self, name: str, value: str | tuple[str, ...], where: str) -> None:
        known = ", ".join(self.choices)
        if isinstance(value, str):
            if value not in self.choices:
                raise UsageError(f"{where} {name} = {value!r}", f"Choose one of: {known}")
        elif not value or len(set(value)) < len(value) or not set(value) <= set(self.choices):
            raise UsageError(f"{where} {name} = {list(value)}", f"Choose some of: {known}, each once")
