"""Point prompts beside mask prompts, at their smallest: trained once, every cell a share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.classifier.making import TOY_MANIFEST
from tests.classifier.training.test_localize import RECIPE
from tests.datasets import making
from tools import prompts


def test_rows_of_both_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    making.write_semantic(tmp_path / "data", 7)
    (tmp_path / "toy.toml").write_text(TOY_MANIFEST)
    (tmp_path / "r.toml").write_text(RECIPE)
    words = ["--seeds", "2", "--size", "32", "48", "--points", "6", "--masks", "4", "--hold-out", "2"]
    paths = ["--data-root", tmp_path / "data", "--out", tmp_path / "run", "--docs", tmp_path]
    heads = ["--heads", "lda-1", "gradient-2"]
    monkeypatch.setattr(sys, "argv", ["prompts", str(tmp_path / "r.toml"), *words, *heads, *map(str, paths)])
    prompts.main()
    first = (tmp_path / "prompts-r.json").read_text()
    shares = json.loads(first)["regions_right"]
    assert set(shares) == {"lda-1", "gradient-2"}
    cells = [cell for rows in shares.values() for cell in rows.values()]
    assert len(cells) == 8 and all(len(cell) == 2 and all(0 <= share <= 1 for share in cell) for cell in cells)
    assert "| gradient | 2 | " in capsys.readouterr().out
    prompts.main()
    assert (tmp_path / "prompts-r.json").read_text() == first and "nothing to do" in capsys.readouterr().err
