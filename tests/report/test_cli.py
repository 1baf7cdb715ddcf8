from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.stages.making import Project
from vitp_pipeline.cli import main as cli


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def vitp(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, arguments)])
        cli.main()
        return capsys.readouterr()

    return vitp


def test_report_of_a_run(vitp, run: Path, project: Project, folders: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    _, err = vitp("report", run, "--data-root", project.root, "--recipe", project.recipe.path, "--out", page)
    text = page.read_text(encoding="utf-8")
    assert f"holds 2 evaluations; this is the newest, {folders[1].name}: α = 0.8. The others:" in err
    assert f"  {run}/evaluation/{folders[0].name}: α = 0.4\n" in err
    assert folders[1].name in text and "fused (α = 0.8)" in text and "No data root" not in text


def test_compare_two_evaluations(vitp, folders: list[Path], tmp_path: Path) -> None:
    out, _ = vitp("compare", *folders, "--out", tmp_path / "page.html", "--json", tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    row = next(row for row in numbers["differences"] if row["metric"] == "mIoU")
    assert f"{100 * row['estimate']:+.2f}" in out and "B: α = 0.8" in out
    assert "B: α = 0.8" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_compare_says_which_evaluation_of_a_run_it_took(vitp, run: Path, folders: list[Path], tmp_path: Path) -> None:
    out, err = vitp("compare", run, folders[0], "--out", tmp_path / "page.html")
    assert f"{run} holds 2 evaluations; the newest is taken, {folders[1].name}: α = 0.8\n" in err
    assert "A: α = 0.8" in out and "B differs in α = 0.8 → 0.4\n" in out
    _, err = vitp("compare", *folders, "--out", tmp_path / "page.html")
    assert "holds" not in err


def test_compare_of_one_run_offers_its_evaluations(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run: Path,
    folders: list[Path],
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.html"
    for given, offered in ((run, True), (folders[0], False)):
        monkeypatch.setattr(sys, "argv", ["vitp", "compare", str(given), "--out", str(page)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert end.value.code == 2 and not out and not page.exists()
        assert "vitp: a comparison needs at least two evaluations. Name two" in err
        for folder, label in zip(folders, ("α = 0.4", "α = 0.8"), strict=True):
            assert (f"  {run}/evaluation/{folder.name}: {label}\n" in err) == offered
