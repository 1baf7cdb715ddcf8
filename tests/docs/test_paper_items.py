"""The table of docs/paper.md: every item of the paper is in it, and what it names exists."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.docs.conftest import Place
from tests.docs.pages import PROGRAMS, ROOT, SPAN, read
from tests.docs.reading import READERS
from vitp_pipeline.config.recipe import load_preset, load_recipe
from vitp_pipeline.datasets import load_manifest

ITEMS = {
    *("Eq. 1", "Eq. 2", "§3.2", "§3.3", "§3.4", "§4.1", "§4.2", "§7"),
    *(f"Table {n}" for n in range(1, 7)),
    *(f"Figure {n}" for n in range(1, 7)),
    "#Params, #FLOPs",
}
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in read("docs/paper.md").splitlines()
    if line[:1] == "|"
][2:]


def test_every_item_of_the_paper_has_a_row() -> None:
    first = [row[0] for row in ROWS]
    figures = [f"Figure {n}" for item in first if item.startswith("Figures") for n in re.findall(r"\d", item)]
    named = [item for item in first if not item.startswith("Figures")] + figures
    assert set(named) == ITEMS and len(named) == len(ITEMS)
    assert all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0].replace(" ", "") for row in ROWS])
def test_a_row_is_true(row: list[str], place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are there and, where they are settings, valid; every command is read by its program, every test exists."""
    _, _, where, verified = row
    paths = [ROOT / span for span in SPAN.findall(where)]
    assert paths and all(path.exists() for path in paths), paths
    for path in (path for path in paths if path.suffix == ".toml" and path.stem not in ("rows", "ablations")):
        {"presets": load_preset, "manifests": load_manifest}.get(path.parent.name, load_recipe)(path)
    monkeypatch.chdir(place.folder)
    place.lay()
    commands = [shlex.split(span) for span in SPAN.findall(verified) if span.split()[0] in PROGRAMS and " " in span]
    assert any(len(words) > 1 for words in commands)
    for program, *words in commands:
        if (program, *words) != ("vitp", "evaluate"):  # named, not given
            READERS[program](words)
        if program == "pytest":
            for word in words:
                file, _, name = word.partition("::")
                assert (ROOT / file).is_file()
                assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
