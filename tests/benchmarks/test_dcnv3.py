from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import dcnv3


def test_the_benchmark_of_the_operators_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so finds that all ways give the same: it checks that first."""
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["dcnv3", "--side", "32", "--repeats", "1", "--json", str(file)])
    dcnv3.main()
    rows, table = json.loads(file.read_text()), capsys.readouterr().out
    assert len(rows) == 3 * 5 + 2 * 2
    assert all(row["forward_factor"] == row["both_factor"] == 1 for row in rows if row["way"] == "ours")
    assert table.count("\n| ") == len(rows) + 1
