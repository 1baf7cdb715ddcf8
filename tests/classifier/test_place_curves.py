"""The curves of point tokens on photographs, at their smallest: rows are kept, and the page is written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.classifier.making import TOY_MANIFEST
from tests.classifier.training.test_localize import RECIPE
from tests.datasets import making
from tools import place_curves as curves

PAGE = Path(__file__).parents[2] / "docs/localize.md"


def test_rows_are_kept_and_the_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making.write_semantic(tmp_path / "data", 7)
    (tmp_path / "toy.toml").write_text(TOY_MANIFEST)
    (tmp_path / "r.toml").write_text(RECIPE)
    shutil.copy(PAGE, tmp_path / "page.md")
    words = [
        "--size",
        "32",
        "48",
        "--blocks",
        "2",
        "--steps",
        "4",
        "--batch-size",
        "2",
        "--points",
        "6",
        "--held-out",
        "2",
    ]
    paths = ["--json", tmp_path / "found.json", "--plot", tmp_path / "curves.png", "--docs", tmp_path / "page.md"]
    given = ["curves", str(tmp_path / "r.toml"), "--data-root", str(tmp_path / "data"), *words, *map(str, paths)]
    monkeypatch.setattr(sys, "argv", given)
    trained = []
    curve = curves.curve

    def counted(row, options):
        trained.append(row)
        return curve(row, options)

    monkeypatch.setattr(curves, "curve", counted)
    curves.main()
    curves.main()
    assert trained == ["linear", "rotary", "patch", "sampled"]  # once, and none from a localized classifier
    found = json.loads((tmp_path / "found.json").read_text())["curves"]
    assert [point["images"] for point in found["patch"]] == [2, 4, 8]
    assert all(0 <= point["held_out_accuracy"] <= 1 for points in found.values() for point in points)
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| `sampled` | " in page and "](images/curves.png)" in page
