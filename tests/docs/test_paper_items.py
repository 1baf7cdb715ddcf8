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


def check(where: str, verified: str) -> None:
    """Raise unless files are there and, where they are settings, valid; programs know their commands; tests exist."""
    paths = [ROOT / span for span in SPAN.findall(where)]
    assert paths and all(path.exists() for path in paths), paths
    for path in (path for path in paths if path.suffix == ".toml" and path.stem not in ("rows", "ablations")):
        kind = path.relative_to(ROOT).parent.name
        {"presets": load_preset, "manifests": load_manifest}.get(kind, load_recipe)(path)
    commands = [shlex.split(span) for span in SPAN.findall(verified) if span.split()[0] in PROGRAMS and " " in span]
    assert any(len(words) > 2 or words[0] == "pytest" for words in commands)
    for program, *words in commands:
        if (program, *words) != ("vitp", "evaluate"):  # named, not given
            READERS[program](words)
        for word in words if program == "pytest" else ():
            file, _, name = word.partition("::")
            assert (ROOT / file).is_file()
            assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
                name
            )


@pytest.mark.parametrize("row", ROWS, ids=[row[0].replace(" ", "") for row in ROWS])
def test_a_row_is_true(row: list[str], place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    place.lay()
    check(*row[2:])


@pytest.mark.parametrize(
    ("where", "verified"),
    [
        ("nothing", "`pytest tests/test_paper.py`"),
        ("`stages/paper/none.toml`", "`pytest tests/test_paper.py`"),
        ("`stages/camvid.toml`", "nothing"),
        ("`stages/camvid.toml`", "`vitp evaluate`"),
        ("`stages/camvid.toml`", "`pytest tests/test_papers.py`"),
        ("`stages/camvid.toml`", "`pytest tests/test_paper.py::test_none`"),
        ("`stages/camvid.toml`", "`vitp evaluate paper/none --data-root data --out RUN`"),
        ("`stages/camvid.toml`", "`python tools/ablations.py --nothing`"),
        ("`pyproject.toml`", "`pytest tests/test_paper.py`"),
    ],
)
def test_a_mistaken_row_is_noticed(where: str, verified: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    place.lay()
    with pytest.raises(Exception):  # noqa: B017  (each program says it in its own way)
        check(where, verified)
