"""The comparison of point tokens, at its smallest: it goes on where it was stopped, and writes what it found."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tools import point_token_curves as curves

PAGE = Path(__file__).parents[2] / "docs/backbones.md"


def test_it_goes_on_and_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PAGE, tmp_path / "page.md")
    words = ["--images", "4", "--seeds", "1", "--steps", "2", "--batch-size", "2", "--points", "6", "--held-out", "2"]
    paths = ["--json", tmp_path / "found.json", "--plot", tmp_path / "curves.png", "--docs", tmp_path / "page.md"]
    monkeypatch.setattr(sys, "argv", ["curves", *words, *map(str, paths)])
    trained = []
    train = curves.train

    def counted(*given):
        trained.append(given[:4])
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(curves, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        curves.main()
    early = json.loads((tmp_path / "found.json").read_text())["accuracy"]
    curves.main()
    found = json.loads((tmp_path / "found.json").read_text())["accuracy"]
    assert len(early) == 2 and early.items() <= found.items()
    assert len(trained) == 9 and len(found) == 8  # the third was begun twice
    assert all(0 <= share <= 1 for share in found.values())
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| rotary | `rotary` | " in page and "](images/curves.png)" in page
    monkeypatch.setattr(sys, "argv", ["curves", "--page", *map(str, paths)])
    curves.main()
    assert len(trained) == 9 and (tmp_path / "page.md").read_text(encoding="utf-8") == page
