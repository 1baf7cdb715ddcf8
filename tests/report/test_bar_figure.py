from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from tests.report.test_cli import vitp  # noqa: F401
from tests.report.test_page import read
from tests.stages.making import Project
from vitp_pipeline.errors import UsageError
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.report.bar_figure import bar_figure, require_figure, write_figure
from vitp_pipeline.report.compare import compare, labels_of, write_comparison
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, open_evaluation
from vitp_pipeline.report.report import write_report
from vitp_pipeline.report.task_bars import BARS, TaskBars, task_bars

WHERE = {"PQ": ("panoptic", "all", "PQ"), "AP": ("instance", "coco", "AP"), "mIoU": ("semantic", "mIoU")}
SHOWN = ("generator", "fused", "upper_bound_point")


@pytest.fixture(scope="module")
def places(project: Project, run: Path, folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two evaluations without AP and of one of all three tasks, each with its result.json."""
    out = tmp_path_factory.mktemp("tasks") / "toy"
    shutil.copytree(run, out)
    of_all = project.evaluate(out, tasks=("semantic", "panoptic", "instance")).run.folder
    found = [*(out / "evaluation" / folder.name for folder in folders), of_all]
    for folder in found:
        result_of(open_evaluation(folder).evaluation)
    return found


@pytest.fixture(scope="module")
def all_tasks(places: list[Path]) -> Path:
    return places[-1]


def figure_of(folder: Path, metric: str, variant: str) -> float:
    """A figure in result.json, in per cent."""
    task, *keys = WHERE[metric]
    value = json.loads((folder / "result.json").read_text())[task][variant]
    for key in keys:
        value = value[key]
    return 100 * value


def heights(figure: matplotlib.figure.Figure) -> dict[str, list[float]]:
    return {bars.get_label(): [bar.get_height() for bar in bars] for bars in figure.axes[0].containers}


def test_bars_are_the_figures_of_result_json(all_tasks: Path) -> None:
    bars = task_bars(open_evaluation(all_tasks))
    assert [entry.metric for entry in bars] == ["PQ", "AP", "mIoU"]
    drawn = bar_figure([bars], [""], "toy val")
    expected = {BARS[v]: [figure_of(all_tasks, metric, v) for metric in WHERE] for v in SHOWN}
    found = heights(drawn)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values)
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == ["PQ", "AP", "mIoU"]
    assert drawn.axes[0].get_ylim()[0] == 0


@pytest.mark.slow
def test_the_page_has_the_same_chart(all_tasks: Path, tmp_path: Path) -> None:
    write_report(open_evaluation(all_tasks), tmp_path / "page.html")
    _, data = read(tmp_path / "page.html")
    chart = data["charts"]["tasks"]
    assert [trace["name"] for trace in chart["data"]] == [BARS[v] for v in SHOWN]
    for trace, variant in zip(chart["data"], SHOWN, strict=True):
        assert trace["x"] == list(WHERE)
        assert trace["y"] == pytest.approx([figure_of(all_tasks, m, variant) for m in WHERE], abs=1e-3)
    assert 'data-chart="tasks"' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_comparison_has_a_cluster_for_each(places: list[Path], tmp_path: Path) -> None:
    runs = [open_evaluation(folder) for folder in places]
    labels = labels_of(runs)
    pairs = [(m, i) for m in WHERE for i in range(3) if m != "AP" or i == 2]
    drawn = heights(bar_figure([task_bars(run) for run in runs], labels, "toy"))
    write_comparison(runs, compare(runs), tmp_path / "page.html")
    _, data = read(tmp_path / "page.html")
    traces = {trace["name"]: trace for trace in data["charts"]["tasks"]["data"]}
    for variant in SHOWN:
        expected = [figure_of(places[i], metric, variant) for metric, i in pairs]
        trace = traces[BARS[variant]]
        assert drawn[BARS[variant]] == pytest.approx(expected)
        assert trace["y"] == pytest.approx(expected, abs=1e-3)
        assert trace["x"] == [[m for m, _ in pairs], ["ABC"[i] for _, i in pairs]]
        assert trace["customdata"] == [labels[i] for _, i in pairs]


def test_masks_without_class_scores_have_the_classifier_and_the_bound() -> None:
    own = [TaskBars("semantic", "mIoU", {"classifier": 0.5, "upper_bound_point": 0.75})]
    assert heights(bar_figure([own], [""], "toy")) == {"classifier": [50], "upper bound (point labels)": [75]}


def test_a_figure_that_does_not_exist_has_no_bar() -> None:
    own = [TaskBars("instance", "AP", {"generator": None, "fused": None, "upper_bound_point": None})]
    assert all(value != value for values in heights(bar_figure([own], [""], "toy")).values() for value in values)


@pytest.mark.parametrize("suffix", [".svg", ".PNG", ".pdf"])
def test_the_suffix_chooses_the_format(stored: StoredEvaluation, tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        write_figure([stored], [""], file)
    assert files[0].read_bytes() == files[1].read_bytes()
    if suffix == ".svg":
        texts = [text.strip() for text in ElementTree.parse(files[0]).getroot().itertext()]
        value = f"{100 * stored.result['semantic']['fused']['mIoU']:.1f}"
        assert {"PQ", "mIoU", "generator", "fused", "upper bound (point labels)", value} <= set(texts)
    elif suffix == ".PNG":
        with Image.open(files[0]) as picture:
            assert picture.format == "PNG" and min(picture.size) > 400
    else:
        assert files[0].read_bytes().startswith(b"%PDF")


def test_names_are_text_not_formulas(stored: StoredEvaluation, tmp_path: Path) -> None:
    evaluations = [stored, replace(stored)]
    write_figure(evaluations, [r"A: $\frac{1$", "B: <b>&"], tmp_path / "a.svg")
    texts = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert r"A: $\frac{1$" in texts and "B: <b>&" in texts


def test_another_suffix_is_refused_before_any_work(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the suffix chooses the format") as caught:
        require_figure(tmp_path / "figure.gif")
    assert ".svg, .png, .pdf" in str(caught.value)


def test_the_commands_write_it(vitp, folders: list[Path], tmp_path: Path) -> None:  # noqa: F811
    out, err = vitp("report", folders[0], "--out", tmp_path / "r.html", "--figure", tmp_path / "new/one.svg", "--json")
    assert json.loads(out)["figure"] == str(tmp_path / "new/one.svg") and f"{tmp_path / 'new/one.svg'}: " in err
    _, err = vitp("compare", *folders, "--out", tmp_path / "c.html", "--figure", tmp_path / "two.png")
    assert (tmp_path / "new/one.svg").stat().st_size and f"{tmp_path / 'two.png'}: " in err
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.width > picture.height
