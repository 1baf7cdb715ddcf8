"""Validate values into settings; errors are one line with key, value and allowed values, from the declarations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast, dataclass_transform

from vitp_pipeline.errors import UsageError
from vitp_pipeline.validation.constraints import MANY
from vitp_pipeline.validation.keys import STRICT, keys_of, schema_of, types_of

if TYPE_CHECKING:  # see keys.py
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

Table = TypeVar("Table")
RENAMED = {
    "taps": "feature_layers",
    "mirror": "flip",
    "centre": "center",
    "spread": "multi",
    "peaks": "local_maxima",
    "discriminant": "lda",
    "renormalised": "renormalized",
}
"""Keys and choices of recipes by their name in vitp 0.1."""
OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


@dataclass_transform(frozen_default=True)
def table(kind: type[Table]) -> type[Table]:
    """Make a frozen dataclass of `Key`s. Building one, and `dataclasses.replace`, raise UsageError for a bad value.

    Only values that differ from their key's default are checked. A class checks values together in `__post_init__`,
    and sets those that follow from others in a class method `_implied(values) -> values`.
    """
    made: Any = dataclasses.dataclass(frozen=True)(kind)
    made.__pydantic_config__ = STRICT
    build, implied = made.__init__, getattr(made, "_implied", dict)
    fields = {field.name: field for field in dataclasses.fields(made)}

    @functools.wraps(build)
    def checked_build(self: Table, *first: Any, **values: Any) -> None:
        values = implied(dict(zip(fields, first, strict=False)) | values)
        for name, field in fields.items():
            if name in values:
                if not _is_default(values[name], field.default):
                    values[name] = _validated(f"{name} = {toml(values[name])}", values[name], types_of(made)[name])
            elif field.default is field.default_factory:  # both are missing
                raise UsageError(f"needs the key {name!r}", f"It is: {keys_of(made)[name].help}")
        if odd := [name for name in values if name not in fields]:
            raise UsageError(f"has no key {odd[0]!r}", did_you_mean(odd[0], fields))
        build(self, **values)

    made.__init__ = checked_build
    return cast("type[Table]", made)


def _is_default(value: Any, default: Any) -> bool:
    """True if a value need not be checked; (1.0,) equals (1,) and is of another type inside, so tuples always are."""
    return value is default or (type(value) is type(default) and value == default and not isinstance(value, tuple))


def checked(kind: type[Table], values: Mapping[str, Any], where: str, places: Mapping[str, str] | None = None) -> Table:
    """Build the settings of a table from values of a file and of the command line.

    Args:
        kind: class made by `table`.
        values: by key; arrays may be lists.
        where: origin of the values, for messages: "mine.toml: [evaluate]".
        places: origin of single keys that were set elsewhere: "on the command line: [evaluate]".
    Raises:
        UsageError: a key is unknown or missing, a value has another type or is out of range, values exclude each other.
    """
    places = places or {}
    try:
        return kind(**{key: frozen(value) for key, value in values.items()})
    except UsageError as error:
        words = re.findall(r"\w+", error.message)
        about = words[:1] if words[0] in values else words  # a message begins with its key, if it is about one alone
        place = next((places[word] for word in about if word in places), where)
        raise UsageError(f"{place} {error.message}", error.hint) from None


def check_value(name: str, value: Any, annotation: Any) -> Any:
    """Check one value, such as a flag's, against a type of `constraints`.

    Raises:
        UsageError: it is of the wrong type or out of range.
    """
    return _validated(f"{name} {toml(value)}", frozen(value), annotation)


def _validated(what: str, value: Any, annotation: Any) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        raise _refused(what, schema_of(annotation), error.errors(include_url=False)[0]) from None


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation, config=STRICT)


def frozen(value: Any) -> Any:
    """Replace lists by tuples."""
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def _refused(what: str, schema: dict[str, Any], error: ErrorDetails) -> UsageError:
    """Make the error for `what`, a key and its value."""
    takes = takes_of(schema)
    if error["type"] == "check":
        return UsageError(f"{what} {error['ctx']['words']}", f"It takes {takes}" if _suffix(_of_items(schema)) else "")
    if error["type"] in ("choice", "literal_error") and "enum" in _of_items(schema):
        choose = "Choose among" if schema.get("type") == "array" else "Choose one of"
        meant = _meant(str(error["input"]), list(map(str, _of_items(schema)["enum"])))
        advice = f"{choose}: {takes_choice(schema)}"
        return UsageError(what, f"{meant}{' ' if meant.endswith('?') else '. '}{advice}" if meant else advice)
    if "anyOf" in schema:
        return UsageError(f"{what} is not {takes}")
    inner = _of_items(schema)
    if error["type"] in OUTSIDE and (interval := interval_of(inner)):
        odd = "" if inner is schema else f": {toml(error['input'])}"
        return UsageError(f"{what}{odd} is outside {interval}")
    wrong = "length" if error["type"] in ("too_short", "too_long", "missing") else "type"
    return UsageError(f"{what} has the wrong {wrong}: it takes {takes}")


def _of_items(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a single value: of an array's items, or of the first of several forms."""
    if "anyOf" in schema:
        return _of_items(schema["anyOf"][0])
    return _of_items(schema["items"]) if schema.get("type") == "array" else schema


def _meant(word: str, known: list[str]) -> str:
    if (new := RENAMED.get(word)) in known:
        return f"vitp 0.2 calls it {new!r}"
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"Did you mean {near[0]!r}?" if near else ""


def takes_choice(schema: dict[str, Any]) -> str:
    """List the words that a value may be."""
    return ", ".join(str(word) if word != "" else '""' for word in _of_items(schema)["enum"])


def takes_of(schema: dict[str, Any]) -> str:
    """Describe the values that are allowed: "a whole number in [1, 64]"."""
    if "anyOf" in schema:
        return " or ".join(map(takes_of, schema["anyOf"]))
    if "const" in schema:
        return toml(schema["const"])
    if "enum" in schema:
        return f"one of: {takes_choice(schema)}"
    kind = schema.get("type")
    if kind == "array":
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        count = "two " if low == high == 2 else "one or more " if low else "two or no " if high == 2 else ""
        return f"a list of {count}{_PLURALS[_of_items(schema)['type']]}{_suffix(_of_items(schema))}"
    return f"{_SINGULAR[str(kind)]}{_suffix(schema)}"


def _suffix(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f" among: {takes_choice(schema)}"
    return f" in {interval}" if (interval := interval_of(schema)) else ""


_SINGULAR = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
_SINGULAR["object"] = "a table"
_PLURALS = {"integer": "whole numbers", "number": "numbers", "boolean": "true or false", "string": "words"}
_PLURALS["object"] = "tables"


def interval_of(schema: dict[str, Any]) -> str:
    """Format the range of a number in interval notation: "[0, 1)"; empty without a range."""
    low, high = (schema.get(end, schema.get(f"exclusive{end.title()}")) for end in ("minimum", "maximum"))
    if low is None or high is None:
        return ""
    ends = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
    return f"{ends[0]}{_end(low)}, {_end(high)}{ends[1]}"


def _end(value: float) -> str:
    """Format an end of a range; 1e9 for an unbounded count."""
    return "1e9" if value == MANY else toml(value)


def toml(value: Any) -> str:
    """Format a value as TOML, shortened if it is long."""
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(toml, value))}]"
    elif isinstance(value, float):
        text = str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest a correction of an unknown word: its new name, the nearest known word, or all of them."""
    words = list(known)
    return _meant(word, words) or f"Known are: {', '.join(words)}"
