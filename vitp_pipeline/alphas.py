"""--alpha: the weight of the classifier as people write it."""

from __future__ import annotations

import re

from vitp_pipeline.errors import UsageError


def parse_alpha(text: str) -> float:
    """A single number on the command line. Raises UsageError."""
    try:
        return float(text)
    except ValueError:
        mend = "The decimal sign is a point, as in 0.4" if "," in text else "Like 0.4"
        raise UsageError(f"--alpha {text!r} is not a number", mend) from None


def check_decimal_sign(text: str) -> None:
    """Raises UsageError where a comma is likely meant for a point: `0,4` and `0:1:0,1`, but not the list `0,0.4,1`."""
    if "." in text or not re.search(r"\b0,\d", text):
        return
    if ":" in text or any(float(word) > 1 or len(word) > 1 for word in re.findall(r"\d+", text)):
        raise UsageError(
            f"--alpha {text}: a comma separates values, the decimal sign is a point",
            f"Is {text.replace(',', '.')} meant?" if text.count(",") == 1 else "Like 0.4, or 0,0.4,1 for three",
        )


def parse_alphas(text: str) -> tuple[float, ...]:
    """`0.4`, `0,0.4,1`, or `first:last:step` with `last` when a step meets it.

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
    for value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"--alpha {text}: α = {value:g} is outside [0, 1]")
    return tuple(values)
