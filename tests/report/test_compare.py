from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.local_runs import create_or_check
from tests.report.test_page import read
from tests.stages.making import Project, make_run
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.evaluation.count_reader import image_areas, read_rows
from vitp_pipeline.evaluation.definition import headline_variants
from vitp_pipeline.metrics.bootstrap import paired_difference
from vitp_pipeline.report.compare import (
    compare,
    in_words,
    labels_of,
    print_comparison,
    write_comparison,
)
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, open_evaluation
from vitp_pipeline.report.paired import panoptic_areas, panoptic_quality


@pytest.fixture(scope="module")
def both(folders: list[Path]) -> list[StoredEvaluation]:
    return [open_evaluation(folder) for folder in folders]


@pytest.fixture(scope="module")
def result(both: list[StoredEvaluation]) -> dict:
    return compare(both)


def test_differences_are_those_of_the_figures(result: dict, both: list[StoredEvaluation]) -> None:
    first, other = (run.result for run in both)
    expected = {
        "mIoU": other["semantic"]["fused"]["mIoU"] - first["semantic"]["fused"]["mIoU"],
        "pixel accuracy": other["semantic"]["fused"]["pixel_accuracy"] - first["semantic"]["fused"]["pixel_accuracy"],
        "PQ": other["panoptic"]["fused"]["all"]["PQ"] - first["panoptic"]["fused"]["all"]["PQ"],
        "mask accuracy": other["masks"]["mask_accuracy"]["fused"] - first["masks"]["mask_accuracy"]["fused"],
    }
    found = {row["metric"]: row for row in result["differences"]}
    assert set(found) == set(expected) and {row["variant"] for row in found.values()} == {"fused"}
    for metric, value in expected.items():
        assert found[metric]["estimate"] == pytest.approx(value)
        assert found[metric]["low"] <= found[metric]["estimate"] <= found[metric]["high"]
    assert any(row["low"] < row["high"] for row in found.values())


def test_pq_from_the_sums_is_the_result(both: list[StoredEvaluation]) -> None:
    for run in both:
        for variant in ("generator", "fused"):
            sums = panoptic_areas(run, variant)
            assert panoptic_quality(sums.sum(0)) == pytest.approx(run.result["panoptic"][variant]["all"]["PQ"])
    np.testing.assert_array_equal(
        panoptic_areas(both[0], "fused")[..., 1], panoptic_areas(both[0], "generator")[..., 1]
    )


def test_pq_intervals_by_a_slow_loop(both: list[StoredEvaluation], result: dict) -> None:
    a, b = (panoptic_areas(run, "fused") for run in both)
    draws = np.random.default_rng(0).multinomial(len(a), np.full(len(a), 1 / len(a)), size=1000)

    def pq(times: np.ndarray, areas: np.ndarray) -> float:
        values = []
        for k in range(areas.shape[1]):
            iou, truth, predicted = ((times * areas[:, k, c]).sum() for c in range(3))
            if truth + predicted:
                values.append(iou / (truth / 2 + predicted / 2))
        return float(np.mean(values))

    differences = [pq(times, b) - pq(times, a) for times in draws]
    row = next(row for row in result["differences"] if row["metric"] == "PQ")
    assert [row["low"], row["high"]] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist())


def test_class_intervals_are_those_of_a_class_alone(both: list[StoredEvaluation], result: dict) -> None:
    a, b = (image_areas(run.evaluation, run.rows, headline_variants(run.evaluation)["fused"]) for run in both)

    def iou(total: np.ndarray) -> np.ndarray:
        return total[..., 2, 0] / (total[..., 2, 1] + total[..., 2, 2] - total[..., 2, 0])

    alone = paired_difference(a, b, iou)
    (rows,) = result["classes"].values()
    car = next(row for row in rows if row["name"] == "car")
    assert [car["estimate"], car["low"], car["high"]] == pytest.approx([alone.estimate, alone.low, alone.high])
    assert car["other"] - car["first"] == pytest.approx(car["estimate"])


def test_images_and_settings(result: dict, both: list[StoredEvaluation]) -> None:
    (changes,) = result["image_changes"].values()
    assert {row["image"] for row in changes} == set(both[0].rows.images)
    assert [row["change"] for row in changes] == sorted((row["change"] for row in changes), reverse=True)
    (lines,) = result["settings"].values()
    assert any("evaluation.settings.alpha: (default) → 0.8" in line for line in lines)
    assert not any("proposals" in line or "class_scores" in line for line in lines)
    assert result["labels"] == ["A: α = 0.4", "B: α = 0.8"]


def test_a_run_against_itself_differs_by_nothing(both: list[StoredEvaluation]) -> None:
    same = compare([both[0], both[0]])
    assert all(row["estimate"] == row["low"] == row["high"] == 0 for row in same["differences"])
    assert len(set(labels_of([both[0], both[0]]))) == 2


def test_only_images_that_all_have_are_compared(
    both: list[StoredEvaluation], project: Project, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "part")
    folder = tmp_path / "part/evaluation" / both[1].evaluation.run.folder.name
    (folder / "result.json").unlink(missing_ok=True)
    (folder / "shards/00000/done.json").unlink()
    half = open_evaluation(folder)
    found = compare([both[0], half])
    assert found["images"] == 4 == half.result["images"]["measured"]
    (changes,) = found["image_changes"].values()
    assert {row["image"] for row in changes} == set(half.rows.images)


def test_what_cannot_be_compared(both: list[StoredEvaluation]) -> None:
    from dataclasses import replace

    from vitp_pipeline.report.loaded_evaluation import NoData

    with pytest.raises(UsageError, match="two"):
        compare(both[:1])
    spec = both[1].evaluation.dataset.spec
    classes = (replace(spec.classes[0], name="heaven"), *spec.classes[1:])
    evaluation = replace(both[1].evaluation, dataset=NoData(replace(spec, classes=classes), "val"))
    with pytest.raises(IncompatibleError, match="other classes"):
        compare([both[0], replace(both[1], evaluation=evaluation)])
    elsewhere = replace(both[1].rows, images=[f"x{i}" for i in both[1].rows.images])
    with pytest.raises(IncompatibleError, match="no image in common"):
        compare([both[0], replace(both[1], rows=elsewhere)])


def test_the_page_of_a_comparison(both: list[StoredEvaluation], result: dict, tmp_path: Path) -> None:
    import plotly.graph_objects as go

    three = [*both, both[0]]
    write_comparison(three, compare(three), tmp_path / "compare.html")
    reader, data = read(tmp_path / "compare.html")
    for chart in data["charts"].values():
        go.Figure(json.loads(json.dumps(chart)))
    assert {"differences:fused", "alpha:mIoU"} <= set(data["charts"])
    table = next(t for t in reader.tables if t.get("id") == "differences")
    shown = {(row[0][0], row[1]): row[2] for row in table["rows"][1:]}
    for row in result["differences"]:
        assert shown["B", row["metric"]] == f"{100 * row['estimate']:+.2f}".replace("-", "−")
    assert shown["C", "mIoU"] == "+0.00"
    for address in reader.addresses:
        assert address.startswith(("#", "data:"))
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "B differs in α = 0.4 → 0.8.</p>" in text and "C differs in nothing that decides results.</p>" in text
    assert "are too few to be joined" in text and "Points of B: α = 0.8" in text


def test_better_and_worse_images_are_apart(both: list[StoredEvaluation], result: dict, tmp_path: Path) -> None:
    (label,) = result["image_changes"]
    rows = [
        {"image": f"i{n}", "first": 0.5, "other": 0.5 + c, "change": c} for n, c in enumerate((0.3, 0.1, 0.0, -0.2))
    ]
    for name, some, expected in [
        ("both", rows, [["i0", "i1"], ["i3"]]),
        ("up", rows[:3], [["i0", "i1"]]),
        ("same", rows[2:3], []),
    ]:
        write_comparison(both, result | {"image_changes": {label: some}}, tmp_path / f"{name}.html")
        reader, _ = read(tmp_path / f"{name}.html")
        tables = [t["rows"][1:] for t in reader.tables if t["rows"][0][:1] == ["image"]]
        assert [[row[0] for row in table] for table in tables] == expected
        assert (tmp_path / f"{name}.html").read_text(encoding="utf-8").count("<p>None.</p>") == 2 - len(expected)


@pytest.fixture(scope="module")
def other_classifier(project: Project, tmp_path_factory: pytest.TempPathFactory) -> StoredEvaluation:
    """The proposals of `run` under another classifier, fused with another α."""
    out = tmp_path_factory.mktemp("classifier") / "toy"
    make_run(project, out, shards=2, weights=b"others")
    create_or_check(out / "classifier/default", {"stage": "classifier"}, ("a",))
    return open_evaluation(project.evaluate(out, alpha=0.6).run.folder)


def test_where_classifiers_differ_they_are_compared_alone_too(
    both: list[StoredEvaluation], other_classifier: StoredEvaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    first = both[0]
    found = compare([first, other_classifier, both[1]])
    ours, theirs = found["labels"][1:]
    assert {row["variant"] for row in found["differences"] if row["label"] == theirs} == {"fused"}
    rows = {row["metric"]: row for row in found["differences"] if row["variant"] == "classifier"}
    assert {row["label"] for row in rows.values()} == {ours}
    a, b = (run.result for run in (first, other_classifier))
    expected = {
        "mIoU": b["semantic"]["classifier"]["mIoU"] - a["semantic"]["classifier"]["mIoU"],
        "pixel accuracy": b["semantic"]["classifier"]["pixel_accuracy"] - a["semantic"]["classifier"]["pixel_accuracy"],
        "PQ": b["panoptic"]["classifier"]["all"]["PQ"] - a["panoptic"]["classifier"]["all"]["PQ"],
        "mask accuracy": b["masks"]["mask_accuracy"]["classifier"] - a["masks"]["mask_accuracy"]["classifier"],
    }
    assert {metric: row["estimate"] for metric, row in rows.items()} == pytest.approx(expected)
    assert all(abs(value) > 0.01 for value in expected.values())
    # the intervals by hand, from rows that nobody left out
    masks = [read_rows(run.evaluation, ["masks"]).columns["masks"] for run in (first, other_classifier)]
    draws = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=1000)
    counts = np.bincount(masks[0]["image"], minlength=7)
    right = [np.bincount(m["image"], m["classifier"] == m["label"], minlength=7) for m in masks]
    differences = draws @ (right[1] - right[0]) / (draws @ counts)
    row = rows["mask accuracy"]
    assert [row["low"], row["high"]] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist())

    print_comparison(found)
    out = capsys.readouterr().out
    assert "B differs in classifier unnamed → default; α = 0.4 → 0.6 (a fused difference is of all of these" in out
    assert "C differs in α = 0.4 → 0.8\n" in out and out.count("classifier alone") == 4


def test_what_differs_in_words(both: list[StoredEvaluation], other_classifier: StoredEvaluation) -> None:
    def words(*lines: str, others: StoredEvaluation = both[1]) -> list[str]:
        return in_words(both[0], others, lines)

    assert words() == words("evaluation.alphas: [0, 1] → [0, 0.4, 1]") == []
    assert words(f"class_scores.classifier: {'a' * 57}… → {'b' * 57}…") == ["classifier unnamed: other weights"]
    assert words("evaluation.points: max → max", "class_scores.settings.points: max → multi") == ["points max → max"]
    assert words(
        "class_scores.settings.temperature: (default) → 0.4", "evaluation.settings.alpha: (default) → 0.8"
    ) == [
        "α = 0.4 → 0.8",
        "temperature: (default) → 0.4",
    ]
    masks = [f"proposals.{n}: {str(n) * 57}… → (default)" for n in range(5)]
    assert words(*masks) == [f"proposals.{n}: content → (default)" for n in range(3)] + ["2 more of the proposals"]
    assert words(f"proposals.generator.checkpoint: {'a' * 57}… → {'b' * 57}…") == ["a generator: other weights"]
    assert words("proposals.settings.points: max → multi") == ["points: max → multi"]
