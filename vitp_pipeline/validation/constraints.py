"""Constraints on values: ranges, choices and other checks, each with its error message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval, Len

if TYPE_CHECKING:  # see keys.py
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

MANY = 10**9
"""Upper end of counts that nothing bounds."""


def within(low: float, high: float, ends: str = "[]") -> Interval:
    """Constrain a number to a range; `ends` in interval notation: "[)" excludes `high`."""
    return Interval(**{"ge" if ends[0] == "[" else "gt": low, "le" if ends[1] == "]" else "lt": high})


def _after(check: Callable[[Any], Any], inner: CoreSchema) -> CoreSchema:
    from pydantic_core import core_schema

    return core_schema.no_info_after_validator_function(check, inner)


def _custom_error(kind: str, **context: Any) -> ValueError:
    from pydantic_core import PydanticCustomError

    return PydanticCustomError(kind, f"{{{next(iter(context))}}}", context)


@dataclass(frozen=True)
class Check:
    """A condition on a value of the right type.

    Attributes:
        holds: tells if a value satisfies it.
        words: error message after `key = value`.
        schema: the condition as JSON Schema, as far as possible.
    """

    holds: Callable[[Any], bool]
    words: str
    schema: dict[str, Any] = field(default_factory=dict, hash=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _after(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), **self.schema}

    def _checked(self, value: Any) -> Any:
        if not self.holds(value):
            raise _custom_error("check", words=self.words)
        return value


@dataclass(frozen=True)
class OneOf:
    """Choice among the names of a registry, read at every check, so that late additions count."""

    names: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _after(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "enum": list(self.names)}

    def _checked(self, value: str) -> str:
        if value not in self.names and value not in (known := list(self.names)):
            raise _custom_error("choice", known=known)
        return value


@dataclass(frozen=True)
class OneOrMore:
    """A list of strings; a single one may be written without brackets."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(
            lambda value: (value,) if isinstance(value, str) else value, handler(source)
        )

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(core)
        return {"anyOf": [several["items"], several]}


def matching(pattern: str, words: str) -> Check:
    """Constrain text to a full match of a regular expression."""
    return Check(lambda text: re.fullmatch(pattern, text) is not None, words, {"pattern": f"^(?:{pattern})$"})


DISTINCT = Check(lambda values: len(set(values)) == len(values), "names one twice", {"uniqueItems": True})
SOME = Len(1)
PAIR = Len(2, 2)
PAIR_OR_NONE = Check(lambda values: len(values) in (0, 2), "is neither a pair nor empty", {"maxItems": 2})
ASCENDING = Check(lambda values: tuple(values) == tuple(sorted(values)), "is not in ascending order")

Fraction = Annotated[float, within(0, 1)]
Count = Annotated[int, within(0, MANY)]
Positive = Annotated[int, within(1, MANY)]
Pixels = Annotated[int, within(1, 2**16)]
PixelPair = tuple[Pixels, Pixels]
EdgePair = Annotated[PixelPair, ASCENDING]
Seed = Annotated[int, within(0, 2**32 - 1)]
Device = Annotated[str, matching(r"auto|cpu|mps|xpu|cuda(:\d{1,3})?", "is not a device: use auto, cpu, cuda or cuda:N")]
FolderName = Annotated[
    str, matching(r"\w[\w.+=@ -]{0,99}", "is not a plain folder name: use letters, digits, . _ and -")
]
