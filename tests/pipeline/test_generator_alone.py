"""`--alpha 0` without any classifier: the generator's figures and files are those of a run that has one."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import Project, Vitp

TASKS = '--set=tasks=["semantic", "panoptic", "instance"]'
SHOWN = ("generator", "upper_bound_point", "upper_bound_mask")


@pytest.fixture
def unclassified(finished: Path, tmp_path: Path) -> Path:
    """A run in which nothing but generate-proposals ran."""
    shutil.copytree(finished / "proposals", tmp_path / "alone" / "proposals")
    return tmp_path / "alone"


def figures(result: dict[str, Any]) -> dict[str, Any]:
    tasks = {task: {name: result[task][name] for name in SHOWN} for task in ("semantic", "panoptic", "instance")}
    return {**tasks, "images": result["images"], "matched": result["masks"]["matched"]}


def words_of(project: Project, run: Path) -> list[str]:
    return [str(project.recipe), "--data-root", str(project.data), "--out", str(run)]


def test_figures_are_those_of_a_run_with_a_classifier(
    project: Project, copied: Path, unclassified: Path, vitp: Vitp, tmp_path: Path
) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("fused", "alone", "streamed")}
    vitp("evaluate", *words_of(project, copied), TASKS, "--json", files["fused"])
    shown = vitp("evaluate", *words_of(project, unclassified), TASKS, "--alpha", 0, "--json", files["alone"])
    vitp("evaluate", *words_of(project, tmp_path / "s"), TASKS, "--alpha", 0, "--stream", "--json", files["streamed"])
    fused, alone, streamed = (json.loads(file.read_text()) for file in files.values())
    assert fused["semantic"]["fused"]["mIoU"] != fused["semantic"]["generator"]["mIoU"] > 0.1
    assert figures(alone) == figures(streamed) == figures(fused)
    accuracy = fused["masks"]["mask_accuracy"]["generator"]
    assert alone["masks"]["mask_accuracy"] == streamed["masks"]["mask_accuracy"] == {"generator": accuracy}
    for result in (alone, streamed):
        told = json.dumps({key: value for key, value in result.items() if key != "provenance"})
        assert not re.search(r'"(classifier|fused|sweep|gain_mIoU)"', told)
        low, high = result["semantic"]["bootstrap"]["generator_mIoU"]
        assert low <= result["semantic"]["generator"]["mIoU"] <= high
    assert "generator (α = 0)" in shown and "(mask labels)" in shown and "mIoU of the generator, 95 %" in shown
    assert not re.search(r"classifier \(|fused", shown)


def test_status_report_and_verify_of_such_a_run(
    project: Project, unclassified: Path, vitp: Vitp, tmp_path: Path
) -> None:
    common = words_of(project, unclassified)
    shown = vitp("evaluate", *common, "--alpha", 0, "--by-class")
    assert "(point labels)" in shown and "gain" not in shown
    assert "generator alone" in vitp("status", unclassified)
    assert "all intact" in vitp("verify", unclassified)
    vitp("report", unclassified, "--data-root", project.data, "--recipe", project.recipe, "--out", tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["compared"] == data["sources"] == ["generator"] and len(data["gallery"]) == 9
    assert all(card["photo"] and card["masks"][0]["generator"] for card in data["gallery"])
    text = page.partition("</style>")[2].partition("<script")[0]
    assert "generator alone (α = 0)" in text and not re.search(r"[cC]lassifier alone|fused|improved|\bharmed", text)


def test_comparison_with_a_full_run_is_by_the_generator(
    project: Project, copied: Path, unclassified: Path, vitp: Vitp, tmp_path: Path
) -> None:
    vitp("evaluate", *words_of(project, unclassified), "--alpha", 0)
    numbers = tmp_path / "numbers.json"
    vitp("compare", copied, unclassified, "--out", tmp_path / "page.html", "--json", numbers)
    rows = json.loads(numbers.read_text())["differences"]
    assert {row["variant"] for row in rows} == {"generator"}
    assert all(row["estimate"] == 0 for row in rows) and len(rows) >= 3


def test_exported_maps_are_those_of_a_run_with_a_classifier(
    project: Project, copied: Path, unclassified: Path, vitp: Vitp
) -> None:
    for run in (copied, unclassified):
        vitp("export-results", *words_of(project, run), "--format", "label-png", "--variant", "generator")
    ours, theirs = (next(run.glob("exports/*/results")) for run in (unclassified, copied))
    names = sorted(path.relative_to(ours).as_posix() for path in ours.rglob("*.png"))
    assert len(names) == 9
    assert filecmp.cmpfiles(ours, theirs, names, shallow=False) == (names, [], [])


def test_other_alphas_need_the_classifier(project: Project, unclassified: Path, vitp: Vitp) -> None:
    for alpha in ("0:1:0.5", "0.4"):
        shown = vitp("evaluate", *words_of(project, unclassified), "--alpha", alpha, code=5)
        assert "no trained classifier" in shown
        assert "--alpha 0" in shown
