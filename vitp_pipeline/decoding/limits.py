"""Limits on the sizes that a file may claim."""

from __future__ import annotations

from vitp_pipeline.errors import InputError

MAX_PIXELS = 250_000_000
"""A file of a few kilobytes can claim to be larger, and would fill the memory."""


def check_pixels(width: int, height: int, what: str) -> None:
    """Raise InputError when something claims to be larger than any image that can be used, or to have no pixels."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(
            f"{what} claims to have {width}×{height} pixels, which is not between 1 and {MAX_PIXELS / 1e6:g} million",
            "Replace it, by a smaller copy perhaps",
        )
