from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.stages.making import Project
from vitp_pipeline.errors import UsageError
from vitp_pipeline.report import page as pages
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, open_evaluation
from vitp_pipeline.report.mask_statistics import read_masks
from vitp_pipeline.report.report import write_report

VOID = {"meta", "link", "input", "br", "img", "hr"}
OPTIONAL = {"tr", "td", "th", "tbody"}


class Reader(HTMLParser):
    """Checks that elements are closed in order; collects addresses, ids, tables and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tables: list[dict] = []
        self.scripts: list[tuple[dict, str]] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "data", "srcset", "poster") and v]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "table":
            self.tables.append({**given, "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")
        if tag == "script":
            self.scripts.append((given, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            given, text = self.scripts[-1]
            self.scripts[-1] = given, text + data
        elif self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1]["rows"][-1][-1] += data


def read(path: Path) -> tuple[Reader, dict]:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader, json.loads(next(text for given, text in reader.scripts if given.get("id") == "data"))


def test_the_page_is_whole_and_asks_no_network(page: Path) -> None:
    reader, data = read(page)
    assert len(reader.ids) == len(set(reader.ids))
    shown = {k for card in data["gallery"] for k in card["classes"]}
    made = {f"class-{k}" for k in shown} | {f"image-{n}" for n in range(len(data["gallery"]))}  # by the page's script
    for address in reader.addresses:
        assert address.startswith(("#", "data:")), address
        assert not address.startswith("#") or address[1:] in {*reader.ids, *made}
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text  # and the browser would refuse
    assert "@import" not in text and not re.search(r"url\((?!data:)", pages.TEMPLATES.joinpath("page.css").read_text())
    assert page.stat().st_size < 25e6


def test_every_chart_is_valid_and_has_a_place(page: Path) -> None:
    import plotly.graph_objects as go

    _, data = read(page)
    text = page.read_text(encoding="utf-8")
    for name, chart in data["charts"].items():
        figure = go.Figure(json.loads(json.dumps(chart)))  # raises on a property that Plotly does not know
        assert figure.layout.height == chart["layout"]["height"]
        assert f'data-chart="{name}"' in text or name == "classes:PQ"  # chosen by the select
    assert {"alpha:mIoU", "alpha:PQ", "classes:IoU", "confusion:fused", "help:area", "reliability"} <= set(
        data["charts"]
    )


def test_charts_show_the_figures(page: Path, stored: StoredEvaluation) -> None:
    _, data = read(page)
    sweep = stored.result["semantic"]["sweep"]
    line = data["charts"]["alpha:mIoU"]["data"][0]
    assert line["y"] == pytest.approx([100 * point["mIoU"] for point in sweep], abs=1e-3)
    assert line["x"] == [point["alpha"] for point in sweep]
    bars = {trace["name"]: trace for trace in data["charts"]["classes:IoU"]["data"]}
    for k, name in enumerate(bars["generator"]["y"]):
        generator, fused = (100 * stored.result["semantic"][v]["IoU"][name] for v in ("generator", "fused"))
        assert bars["generator"]["x"][k] == pytest.approx(min(generator, fused), abs=1e-3)
        assert bars["gained by fusion"]["x"][k] - bars["lost by fusion"]["x"][k] == pytest.approx(
            fused - generator, abs=1e-3
        )
        upper_bound = 100 * stored.result["semantic"]["upper_bound_mask"]["IoU"][name]
        assert bars["upper_bound"]["x"][k] == pytest.approx(upper_bound, abs=1e-3)
    for variant in ("generator", "fused"):
        for row in data["charts"][f"confusion:{variant}"]["data"][0]["z"]:
            assert sum(row) == pytest.approx(100, abs=0.1)


def test_tables_show_the_figures(page: Path, stored: StoredEvaluation) -> None:
    reader, _ = read(page)
    for task, metric in {"semantic": "mIoU", "panoptic": "PQ"}.items():
        table = next(t for t in reader.tables if t.get("data-task") == task)
        assert table["rows"][0][:2] == ["masks classified by", metric]
        shown = {row[0]: row[1] for row in table["rows"][1:]}
        found = stored.result[task]
        value = (lambda v: v["mIoU"]) if task == "semantic" else (lambda v: v["all"]["PQ"])
        assert shown["generator alone (α = 0)"] == f"{100 * value(found['generator']):.2f}"
        gain = 100 * (value(found["fused"]) - value(found["generator"]))
        assert shown["fused (α = 0.4)"] == f"{100 * value(found['fused']):.2f} {gain:+.2f}".replace("-", "−")
        assert shown["upper bound (mask labels)"] == f"{100 * value(found['upper_bound_mask']):.2f}"


def test_few_alphas_are_points_not_a_curve(folders: list[Path], page: Path, tmp_path: Path) -> None:
    write_report(open_evaluation(folders[1]), tmp_path / "few.html")
    for path, mode, alphas in ((page, "lines+markers", 6), (tmp_path / "few.html", "markers", 3)):
        _, data = read(path)
        fused, upper_bound, *_ = data["charts"]["alpha:mIoU"]["data"]
        assert (fused["mode"], len(fused["x"])) == (mode, alphas) and upper_bound["mode"] == "lines"
        hint = "Only 3 α are measured, so the points are not joined: <code>vitp evaluate --alpha 0:1:0.1</code>"
        assert (hint in path.read_text(encoding="utf-8")) == (alphas == 3)


def test_words_are_explained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count('<th scope="col">mIoU (union)</th>') == 1
    assert "in mIoU (union) classes that were only predicted count as 0." in text
    first = text.index("1 − v")
    assert text[first:].startswith("1 − v &gt; 0.5 (v: the probability of “no object”)")


def test_how_many_masks_fusion_corrected_and_made_wrong(page: Path, stored: StoredEvaluation) -> None:
    facts = read_masks(stored)
    before, after = (facts.right(variant)[facts.known] for variant in ("generator", "fused"))
    counts = [int((after & ~before).sum()), int((before & ~after).sum())]
    assert sum(counts) and "Fusion corrected {} and made {} wrong.".format(*counts) in page.read_text(encoding="utf-8")


def test_gallery_and_provenance(page: Path, stored: StoredEvaluation) -> None:
    _, data = read(page)
    text = page.read_text(encoding="utf-8")
    assert {card["name"] for card in data["gallery"]} <= set(stored.rows.images) and len(data["gallery"]) == 7
    for card in data["gallery"]:
        gain = card["after"] - card["before"]
        assert {"improved": gain > 0, "harmed": gain < 0, "uncertain": gain == 0}[card["kind"]]
        assert card["photo"]
    assert stored.evaluation.run.fingerprint in text and stored.evaluation.proposals.run.fingerprint in text
    assert "No data root was given" not in text


def test_without_data_root_there_are_masks_and_numbers_and_a_note(folders: list[Path], tmp_path: Path) -> None:
    write_report(open_evaluation(folders[0]), tmp_path / "bare.html")
    _, data = read(tmp_path / "bare.html")
    assert "No data root was given" in (tmp_path / "bare.html").read_text(encoding="utf-8")
    assert data["gallery"] and all(card["photo"] is None and card["maps"] for card in data["gallery"])


def test_instances_without_semantic_maps(project: Project, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    evaluation = project.evaluate(tmp_path / "run", tasks=("instance",), instance_ap=("coco", "boundary"))
    stored = open_evaluation(evaluation.run.folder, project.root, str(project.recipe.path))
    write_report(stored, tmp_path / "page.html")
    reader, data = read(tmp_path / "page.html")
    (table,) = (t for t in reader.tables if "data-task" in t)
    assert table["data-task"] == "instance" and table["rows"][0][1] == "AP coco"
    shown = {row[0]: row[1] for row in table["rows"][1:]}
    figures = stored.result["instance"]
    assert shown["generator alone (α = 0)"] == f"{100 * figures['generator']['coco']['AP']:.2f}"
    assert {"alpha:AP", "classes:AP coco", "classes:AP boundary", "reliability"} <= set(data["charts"])
    assert data["charts"]["alpha:AP"]["data"][1]["y"][0] == pytest.approx(
        100 * figures["upper_bound_mask"]["coco"]["AP"], abs=1e-3
    )
    assert not any("confusion" in name or "mIoU" in name for name in data["charts"])
    assert 'href="#confusion"' not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert data["gallery"] and data["accuracy_word"] == "mask accuracy"


def test_names_cannot_break_out_of_the_page(stored: StoredEvaluation, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    result = json.loads(json.dumps(stored.result).replace('"road"', json.dumps(evil)))
    spec = stored.evaluation.dataset.spec
    from dataclasses import replace

    from vitp_pipeline.report.loaded_evaluation import NoData

    classes = tuple(replace(c, name=evil) if c.name == "road" else c for c in spec.classes)
    evaluation = replace(stored.evaluation, dataset=NoData(replace(spec, classes=classes), "val"))
    write_report(replace(stored, evaluation=evaluation, result=result, has_data=False), tmp_path / "evil.html")
    reader, data = read(tmp_path / "evil.html")
    assert len(reader.scripts) == 3 and data["classes"]["names"][1] == evil


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UsageError, match=r"vitp-pipeline\[report\]"):
        pages.require_libraries()
