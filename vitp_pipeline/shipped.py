"""Find the recipes and manifests that come with vitp, and turn a user's word into a path."""

from __future__ import annotations

import tomllib
from itertools import accumulate
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import InputError

PACKAGE = Path(__file__).parent


def shipped(kind: str) -> Path:
    """The folder of shipped `stages` or `manifests`: inside an installed package, at the top of a checkout."""
    installed = PACKAGE / "_data" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def find_toml(name_or_path: str | Path, kind: str, beside: Path | None = None) -> Path:
    """A TOML file by path (also relative to the folder `beside`), or a shipped one by its name: `camvid`, `paper/NAME`.

    Raises:
        InputError: nothing of that name; the message lists the shipped ones.
    """
    given = Path(name_or_path).expanduser()
    candidates = [given] if given.suffix == ".toml" else []
    if beside is not None and given.suffix == ".toml" and not given.is_absolute():
        candidates.insert(0, beside / given)
    if (folder := _folder(given, kind)) is not None:
        candidates.append(folder / f"{given.name.removesuffix('.toml')}.toml")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = ", ".join(shipped_names(name_or_path, kind))
    raise InputError(f"{name_or_path}: no such file among the {kind}", f"Give a .toml path, or one of: {names}")


DEEPEST = 100
"""Brackets within brackets of a TOML file. Its parser calls itself for each: where a library has raised Python's limit,
the process would crash."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file in UTF-8, with or without a byte order mark. Raises InputError when it is none."""
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: not a TOML file ({error})") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError when it is none, or has more than `DEEPEST` brackets within brackets."""
    if max(accumulate((c in "[{") - (c in "]}") for c in text if c in "[]{}"), default=0) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} brackets within brackets")
    return tomllib.loads(text)


def shipped_names(meant: str | Path, kind: str) -> list[str]:
    """The shipped ones that somebody who wrote `meant` can have meant: of the folder that it names, if it is there."""
    folder = _folder(Path(meant).expanduser(), kind) or shipped(kind)
    return sorted(p.relative_to(shipped(kind)).with_suffix("").as_posix() for p in folder.glob("*.toml"))


def _folder(given: Path, kind: str) -> Path | None:
    """Return where a shipped file of this name would lie; None where no name is like that."""
    folder = shipped(kind) / given.parent
    named = len(given.parts) <= 2 and not {"..", given.anchor} & set(given.parts)
    return folder if named and folder.is_dir() else None
