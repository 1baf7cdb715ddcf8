"""Parse values of flags: `--set KEY=VALUE`, `--alpha 0:1:0.1`, `--size 518x518`."""

from __future__ import annotations

import re
from typing import Any, cast

from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import Size
from vitp_pipeline.shipped import parse_toml
from vitp_pipeline.validation.constraints import Fraction, PixelPair
from vitp_pipeline.validation.keys import keys_of
from vitp_pipeline.validation.tables import check_value


def parse_changes(changes: list[str] | None) -> dict[str, Any]:
    """Parse `KEY=VALUE` words of the command line into keys of a table; VALUE is TOML, or else plain text.

    Raises:
        UsageError: a word without `=`.
    """
    values: dict[str, Any] = {}
    for word in changes or []:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word!r} is not of the form KEY=VALUE", "For example --set lr=0.003")
        try:
            values[key.strip()] = parse_toml(f"value = {text}")["value"]
        except ValueError:
            values[key.strip()] = text
    return values


def divide(changes: dict[str, Any], *kinds: type) -> list[dict[str, Any]]:
    """Assign every change to the first table that has its key; to the first table if none has."""
    parts: list[dict[str, Any]] = [{} for _ in kinds]
    for key, value in changes.items():
        at = next((number for number, kind in enumerate(kinds) if key in keys_of(kind)), 0)
        parts[at][key] = value
    return parts


def parse_alpha(text: str) -> float:
    """Parse a single number on the command line. Raises UsageError."""
    try:
        return float(text)
    except ValueError:
        hint = "The decimal sign is a point, as in 0.4" if "," in text else "Like 0.4"
        raise UsageError(f"--alpha {text!r} is not a number", hint) from None


def check_decimal_sign(text: str) -> None:
    """Raise UsageError if a comma is probably a decimal point: `0,4` and `0:1:0,1`, but not the list `0,0.4,1`."""
    if "." in text or not re.search(r"\b0,\d", text):
        return
    if ":" in text or any(float(word) > 1 or len(word) > 1 for word in re.findall(r"\d+", text)):
        raise UsageError(
            f"--alpha {text}: a comma separates values, the decimal sign is a point",
            f"Is {text.replace(',', '.')} meant?" if text.count(",") == 1 else "Like 0.4, or 0,0.4,1 for three",
        )


def parse_alphas(text: str) -> tuple[float, ...]:
    """Parse `0.4`, `0,0.4,1`, or `first:last:step`, which includes `last` if a step meets it.

    Raises:
        UsageError: outside [0, 1], or another form.
    """
    try:
        if ":" in text:
            first, last, step = (float(x) for x in text.split(":"))
            if step <= 0 or last < first:
                raise ValueError
            count = int((last - first) / step + 1e-9) + 1
            if count > 1001:
                raise ValueError
            values = [round(first + i * step, 10) for i in range(count)]
        else:
            values = [float(x) for x in text.split(",")]
    except (ValueError, OverflowError):
        raise UsageError(
            f"--alpha {text!r} is neither a number nor first:last:step (at most 1001 values)", "Like 0.4 or 0:1:0.1"
        ) from None
    return tuple(check_value(f"--alpha {text}: α =", value, Fraction) for value in values)


def parse_size(text: str, flag: str) -> Size:
    """Parse "HxW" as (height, width) in pixels. Raises UsageError naming the flag."""
    if match := re.fullmatch(r"(\d{1,9})[x×](\d{1,9})", text.strip().lower()):
        return cast("Size", check_value(flag, (int(match[1]), int(match[2])), PixelPair))
    raise UsageError(f"{flag} {text!r} is not of the form HxW", "Height x width in pixels, like 518x518")
