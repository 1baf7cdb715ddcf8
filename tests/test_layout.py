"""How the package is laid out: small rooms, each of which says what lives in it and where to begin reading."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vitp_pipeline"
ROOMS = sorted(file.parent for file in ROOT.rglob("__init__.py"))
MODULES, ROOT_MODULES, ROOT_LINES = 15, 5, 400


def modules(room: Path) -> list[Path]:
    return [file for file in sorted(room.glob("*.py")) if file.name != "__init__.py"]


def name_of(room: Path) -> str:
    return room.relative_to(ROOT.parent).as_posix()


def test_every_folder_with_modules_is_a_room() -> None:
    assert {file.parent for file in ROOT.rglob("*.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_is_small(room: Path) -> None:
    """`cli` has a module per command."""
    assert room == ROOT / "cli" or len(modules(room)) <= (ROOT_MODULES if room == ROOT else MODULES)
    if room == ROOT:
        assert all(len(file.read_text().splitlines()) <= ROOT_LINES for file in modules(room))


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_says_what_lives_in_it(room: Path) -> None:
    """In words, and by the name of a module to begin with; every name that it gives is there."""
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert len(text) > 40 and text.partition("\n")[0].endswith((".", ":")), "no docstring"
    if room == ROOT:
        return
    named = re.findall(r"`([a-z_][\w.]*)/?`", text)
    missing = [name for name in named if not is_there(room, name)]
    assert named and not missing, f"names what is not there: {missing}" if missing else "names no module to begin with"


def is_there(room: Path, name: str) -> bool:
    """True if a name is a module or a room in `room` or, with a dot, in the package."""
    place = (ROOT if "." in name else room).joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()
