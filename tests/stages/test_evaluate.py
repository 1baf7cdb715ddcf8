from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import making
from tests.run_files import arrays_of, rewrite
from tests.stages.making import Project, drawn, make_project, make_run
from vitp_pipeline.config.flags import parse_alphas
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.errors import CorruptError, MissingStageError, PartialError, UsageError
from vitp_pipeline.evaluation.count_reader import image_areas, read_rows
from vitp_pipeline.evaluation.count_tables import sparse_confusion
from vitp_pipeline.evaluation.definition import variant_of
from vitp_pipeline.evaluation.summary import (
    headline_variants,
    print_result,
    read_result_totals,
    result_of,
    summarize,
    to_json,
)
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.stages.evaluate import prepare
from vitp_pipeline.storage.sealed import read_sealed


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


# ---- α --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.4", [0.4]),
        ("0,0.4,1", [0, 0.4, 1]),
        ("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("0:1:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("0.2:0.5:0.2", [0.2, 0.4]),
        ("0.3:0.3:1", [0.3]),
        ("1e-1", [0.1]),
    ],
)
def test_parse_alphas(text: str, values: list[float]) -> None:
    assert list(parse_alphas(text)) == values  # exactly: 0.30000000000000004 would be another variant than 0.3


@pytest.mark.parametrize(
    "text",
    ["", "a", "0:1", "0:1:0", "1:0:0.1", "0:1:-1", "0:1:0.1:2", "0,,1", "0:inf:0.1", "0:1:nan", "nan:1:1", "0:1:1e-9"],
)
def test_other_forms_of_alpha_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither a number nor"):
        parse_alphas(text)


@pytest.mark.parametrize("text", ["1.01", "-0.1", "0:1.5:0.5", "nan", "inf", "0,2"])
def test_alphas_outside_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="outside"):
        parse_alphas(text)


def test_variants_of_different_alphas_have_different_names() -> None:
    values = [*parse_alphas("0:1:0.001"), 0.1234567, 0.1234568, 1e-7]
    assert len({variant_of(v) for v in values}) == len(set(values))
    assert variant_of(-0.0) == variant_of(0) == "alpha:0"


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_sparse_confusion_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    truth, labels = rng.integers(-1, 5, (9, 11)).astype(np.int16), rng.integers(0, 5, (9, 11))
    dense = np.zeros((5, 5), int)
    for t, p in zip(truth.ravel(), labels.ravel(), strict=True):
        if t != IGNORE:
            dense[t, p] += 1
    found = np.zeros((5, 5), int)
    for t, p, n in zip(*sparse_confusion(labels, truth, 5), strict=True):
        assert n > 0
        found[t, p] += n
    assert np.array_equal(found, dense)
    assert len(sparse_confusion(labels, np.full_like(truth, IGNORE), 5)[2]) == 0


def slow_miou(project: Project, alpha: float) -> tuple[float, float]:
    """Mean IoU over present classes and pixel accuracy by definition, from the drawn numbers alone."""
    inter, union, right, total = np.zeros(3), np.zeros(3), 0, 0
    for sample in project.dataset.samples:
        record, scores = drawn(project.dataset, sample.image_id)
        truth = project.dataset.read_semantic(sample)
        y, c = torch.tensor(record.class_logits, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)
        g = y[:, :3].softmax(1) ** (1 - alpha) * c.softmax(1) ** alpha
        p = (1 - y.softmax(1)[:, 3:]) * g / g.sum(1, keepdim=True)
        masks = torch.tensor(record.masks.astype(np.float64))[None]
        masks = torch.nn.functional.interpolate(masks, truth.shape, mode="bilinear", align_corners=False)[0].sigmoid()
        guess = torch.einsum("qk,qhw->khw", p[record.kept], masks).argmax(0).numpy()
        valid = truth != IGNORE
        right, total = right + (guess == truth)[valid].sum(), total + valid.sum()
        for k in range(3):
            a, b = (guess == k) & valid, (truth == k) & valid
            inter[k], union[k] = inter[k] + (a & b).sum(), union[k] + (a | b).sum()
    return float((inter / union).mean()), right / total


def test_semantic_figures_by_definition(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    result = result_of(project.evaluate(tmp_path / "run"))
    for name, alpha in (("generator", 0.0), ("fused", 0.4), ("classifier", 1.0)):
        miou, accuracy = slow_miou(project, alpha)
        assert result["semantic"][name]["mIoU"] == pytest.approx(miou, abs=2e-3)  # float16 masks, float32 sums
        assert result["semantic"][name]["pixel_accuracy"] == pytest.approx(accuracy, abs=2e-3)
    assert [row["alpha"] for row in result["semantic"]["sweep"]] == [0, 0.4, 1]
    assert result["semantic"]["sweep"][1]["mIoU"] == result["semantic"]["fused"]["mIoU"]
    assert result["semantic"]["upper_bound_mask"]["mIoU"] > result["semantic"]["generator"]["mIoU"]


def test_classified_masks_by_definition(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    result = result_of(project.evaluate(tmp_path / "run"))
    matched, right = 0, {"generator": 0, "classifier": 0}
    for sample in project.dataset.samples:
        record, scores = drawn(project.dataset, sample.image_id)
        truth = project.dataset.read_semantic(sample)
        no_object = torch.tensor(record.class_logits).softmax(1)[:, 3]
        masks = torch.nn.functional.interpolate(torch.tensor(record.masks).float()[None], truth.shape, mode="bilinear")[
            0
        ]
        for q, mask in zip(record.kept, masks, strict=True):
            inside = truth[(mask > 0).numpy() & (truth != IGNORE)]
            if no_object[q] < 0.5 and len(inside):
                matched += 1
                label = np.bincount(inside).argmax()
                right["generator"] += record.class_logits[q, :3].argmax() == label
                right["classifier"] += scores[q].argmax() == label
    assert result["masks"]["matched"] == matched
    for name, count in right.items():
        assert result["masks"]["mask_accuracy"][name] == pytest.approx(count / matched)


# ---- shards and interruptions ---------------------------------------------------------------------------------------


def figures(result: dict) -> dict:
    return {k: result[k] for k in ("semantic", "panoptic", "masks", "images")}


@pytest.mark.parametrize(("shards", "part_size"), [(2, 2), (3, 1), (5, 2), (7, 3)])
def test_any_number_of_shards_gives_exactly_the_same_figures(
    project: Project, tmp_path: Path, shards: int, part_size: int
) -> None:
    make_run(project, tmp_path / "one", 1, 5)
    make_run(project, tmp_path / "many", shards, part_size)
    one = result_of(project.evaluate(tmp_path / "one", "0:1:0.2"))
    for shard in reversed(range(shards)):  # in any order
        many = project.evaluate(tmp_path / "many", "0:1:0.2", [shard])
    assert figures(result_of(many)) == figures(one)
    assert one["panoptic"]["fused"]["all"]["PQ"] > 0


def test_a_headline_needs_all_images(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(project, tmp_path / "run", 2, 2)
    evaluation = project.evaluate(tmp_path / "run", shards=[1])
    with pytest.raises(PartialError, match=r"3 of 5 images are measured: shard 0 not evaluated") as info:
        result_of(evaluation)
    assert "--allow-missing" in str(info.value) and info.value.exit_code == 7
    partial = result_of(evaluation, allow_missing=True)
    assert (partial["images"]["measured"], partial["images"]["of"]) == (3, 5)
    print_result(partial)
    assert "only 3 of 5 images" in capsys.readouterr().out
    assert not (evaluation.run.folder / "result.json").exists()  # never remembered as the result
    whole = result_of(project.evaluate(tmp_path / "run"))
    assert whole["images"]["measured"] == 5 and figures(whole)["semantic"] != figures(partial)["semantic"]
    assert (evaluation.run.folder / "result.json").exists()


def test_nothing_measured_gives_no_figures_at_all(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run", 2, 2)
    evaluation = project.evaluate(tmp_path / "run", shards=[])
    for allow in (False, True):
        with pytest.raises(PartialError, match="0 of 5"):
            result_of(evaluation, allow)


def test_failed_images_are_counted_out(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run", 1, 2, failed=("146",))
    (project.root / "panoptic_val/000153.png").unlink()
    making.write_png(project.root / "panoptic_val/000160.png", np.zeros((4, 4, 3), np.uint8))
    evaluation = project.evaluate(tmp_path / "run")
    with pytest.raises(PartialError, match=r"2 of 5 images are measured: 3 images failed \(first: 146: torn\)"):
        result_of(evaluation)
    result = result_of(evaluation, allow_missing=True)
    reasons = dict(result["images"]["failed"])
    assert set(reasons) == {"146", "153", "160"}
    assert "000153.png" in reasons["153"] and "4×4" in reasons["160"] and "000160.png" in reasons["160"]
    # the figures are those of a dataset of the other two
    rows = read_rows(evaluation)
    assert set(np.unique(rows.columns["semantic"]["image"])) == {0, 4}
    assert "000139" not in to_json(result)


def test_figures_of_the_sums_are_those_of_all_rows_at_once(project: Project, tmp_path: Path) -> None:
    """Figures that are added up part by part against the metrics' own way: everything in memory, one array an image."""
    from vitp_pipeline.metrics.bootstrap import interval, paired_difference
    from vitp_pipeline.metrics.panoptic import PanopticCounts, PanopticQuality
    from vitp_pipeline.metrics.semantic import Confusion

    make_run(project, tmp_path / "run", 2, 1, failed=("153",))
    evaluation = project.evaluate(tmp_path / "run")
    result, rows = summarize(evaluation, read_result_totals(evaluation), True), read_rows(evaluation)
    areas = {}
    for name, variant in headline_variants(evaluation).items():
        e = {k: v[rows.columns["semantic"]["variant"] == variant] for k, v in rows.columns["semantic"].items()}
        state = Confusion(3)
        np.add.at(state.counts, (e["truth"], e["predicted"]), e["pixels"])
        found = result["semantic"][name]
        assert found["mIoU"] == state.miou() and found["mIoU_union"] == state.miou("union")
        assert found["mAcc"] == state.mean_accuracy() and found["pixel_accuracy"] == state.pixel_accuracy()
        areas[name] = image_areas(evaluation, rows, variant)[[0, 1, 3, 4]]
        e = {k: v[rows.columns["panoptic"]["variant"] == variant] for k, v in rows.columns["panoptic"].items()}
        columns = [[e[c][e["class"] == k] for k in range(3)] for c in ("tp", "fp", "fn", "iou")]
        counts = [np.array([c.sum() for c in column]) for column in columns[:3]]
        counts = PanopticCounts(*counts, np.array([math.fsum(c) for c in columns[3]]))
        quality = PanopticQuality(3, evaluation.dataset.spec.things, counts).summary()["all"]
        found = result["panoptic"][name]["all"]
        assert [found[k] for k in ("PQ", "SQ", "RQ")] == [quality.pq, quality.sq, quality.rq]
    gain = paired_difference(areas["generator"], areas["fused"])
    own = interval(areas["fused"])
    assert result["semantic"]["bootstrap"]["gain_mIoU"] == {
        "estimate": gain.estimate,
        "interval": [gain.low, gain.high],
    }
    assert result["semantic"]["bootstrap"]["fused_mIoU"] == [own.low, own.high]
    masks = rows.columns["masks"]
    for name in ("generator", "classifier", "fused"):
        assert result["masks"]["mask_accuracy"][name] == (masks[name] == masks["label"]).mean()


def test_mended_images_are_measured_on_retry(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "a", 1, 2)
    make_run(project, tmp_path / "b", 1, 2)
    expected = figures(result_of(project.evaluate(tmp_path / "a")))
    label = project.root / "panoptic_val/000153.png"
    content = label.read_bytes()
    making.truncate(label)
    assert read_rows(project.evaluate(tmp_path / "b")).failed[0][0] == "153"
    label.write_bytes(content)
    assert read_rows(project.evaluate(tmp_path / "b")).failed[0][0] == "153"  # not asked to
    assert figures(result_of(project.evaluate(tmp_path / "b", retry=True))) == expected


def test_a_result_is_remembered_and_alpha_has_its_own(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    evaluation = project.evaluate(tmp_path / "run")
    first = result_of(evaluation)
    before = {p: p.stat().st_mtime_ns for p in evaluation.run.folder.rglob("*")}
    again = result_of(project.evaluate(tmp_path / "run"))
    assert {**again, "provenance": None} == {**first, "provenance": None}  # of which one is the time
    assert {p: p.stat().st_mtime_ns for p in evaluation.run.folder.rglob("*")} == before
    other = project.evaluate(tmp_path / "run", alpha=0.9)
    assert other.run.folder != evaluation.run.folder and result_of(other)["semantic"]["alpha"] == 0.9
    assert result_of(other)["semantic"]["generator"] == first["semantic"]["generator"]
    assert {p: p.stat().st_mtime_ns for p in evaluation.run.folder.rglob("*")} == before


def test_a_result_that_is_not_as_it_was_written_is_made_anew(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(project, tmp_path / "run")
    evaluation = project.evaluate(tmp_path / "run")
    first, path = result_of(evaluation), evaluation.run.folder / "result.json"
    good = path.read_text(encoding="utf-8")
    digit = good.index('"mIoU": 0.') + len('"mIoU": 0.')
    spoiled = (good[:digit] + str((int(good[digit]) + 5) % 10) + good[digit + 1 :], "{", "", good[:-1], good + " ")
    for text in spoiled:
        path.write_text(text, encoding="utf-8")
        capsys.readouterr()
        assert figures(result_of(evaluation)) == figures(first)
        assert "result.json: damaged" in capsys.readouterr().err
        assert figures(read_sealed(path)) == figures(first)


def test_stages_before_must_be_there(project: Project, tmp_path: Path) -> None:
    measures, points = project.recipe.stage(EvaluateSettings), project.recipe.stage(ClassifySettings)

    def begin(out: str, choice: ShardChoice = ShardChoice()):
        return prepare(project.recipe, measures, points, (), project.root, tmp_path / out, choice)

    with pytest.raises(MissingStageError, match="vitp generate-proposals"):
        begin("nothing")
    make_run(project, tmp_path / "run", 2, without=(1,))
    with pytest.raises(MissingStageError, match=r"shard 1 is not classified.*vitp classify"):
        project.evaluate(tmp_path / "run")
    assert project.evaluate(tmp_path / "run", shards=[0]).run.finished(0)
    (tmp_path / "run/proposals/shards/00001/done.json").unlink()
    with pytest.raises(MissingStageError, match=r"shard 1 of 2 .*vitp generate-proposals"):
        project.evaluate(tmp_path / "run", shards=[1])
    rewrite(tmp_path / "run/classifier/default/model.json", lambda said: said.update(sha256="0" * 64))
    with pytest.raises(MissingStageError, match="has not scored these proposals"):
        begin("run")
    (tmp_path / "run/classifier/default/model.safetensors").unlink()
    with pytest.raises(MissingStageError, match="vitp train-classifier"):
        begin("run")


def test_the_number_of_shards_is_that_of_the_proposals(project: Project, tmp_path: Path) -> None:
    """Other parts than those of the proposals would pair images with the masks of others."""
    from vitp_pipeline.stages.classify import classify

    make_run(project, tmp_path / "run", 2)
    measures, points = project.recipe.stage(EvaluateSettings), project.recipe.stage(ClassifySettings)
    for count in (1, 4):
        with pytest.raises(UsageError, match=f"has 2 shards, not {count}"):
            prepare(project.recipe, measures, points, (), project.root, tmp_path / "run", ShardChoice(0, count))
        with pytest.raises(UsageError, match=f"has 2 shards, not {count}"):
            classify(project.recipe, points, project.root, tmp_path / "run", ShardChoice(0, count))
    prepare(project.recipe, measures, points, (), project.root, tmp_path / "run", ShardChoice(0, 2))


def test_a_damaged_part_is_named(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    path = arrays_of(tmp_path / "run/proposals/shards/00000", 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=path.name):
        project.evaluate(tmp_path / "run")


def test_an_image_gone_from_the_dataset_fails_alone(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    _, data = making.write_coco(tmp_path / "other", 5)
    data["images"] = data["images"][:4]
    making.write_annotations(tmp_path / "other", data)
    project.root = tmp_path / "other"
    assert [i for i, _ in read_rows(project.evaluate(tmp_path / "run")).failed] == ["167"]


def test_mask_quality_touches_panoptic_figures_alone(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    plain = result_of(evaluation := project.evaluate(tmp_path / "run"))
    other = project.evaluate(tmp_path / "run", mask_quality=True)
    ranked = result_of(other)
    assert other.run.folder != evaluation.run.folder
    assert ranked["semantic"] == plain["semantic"] and ranked["masks"] == plain["masks"]
    assert ranked["panoptic"] != plain["panoptic"]


def test_another_protocol_by_name(project: Project, tmp_path: Path) -> None:
    """The masks lie at half resolution, so the place of the sigmoid makes a difference."""
    make_run(project, tmp_path / "run")
    plain = result_of(evaluation := project.evaluate(tmp_path / "run"))
    same = project.evaluate(tmp_path / "run", protocol="mmseg1")
    other = project.evaluate(tmp_path / "run", protocol="mmseg0")
    assert len({e.run.folder for e in (evaluation, same, other)}) == 3
    assert result_of(same)["semantic"] == plain["semantic"]
    assert result_of(other)["semantic"]["fused"] != plain["semantic"]["fused"]


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_json_and_table(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    make_run(project, tmp_path / "run")
    result = result_of(project.evaluate(tmp_path / "run", "0:1:0.25"))
    again = json.loads(to_json(result))
    assert again == json.loads(json.dumps(result))
    for part in ("semantic", "panoptic"):
        assert {"generator", "classifier", "fused", "upper_bound_point", "upper_bound_mask", "alpha", "sweep"} <= set(
            again[part]
        )
        assert again[part]["alpha"] == 0.4 and len(again[part]["sweep"]) == 6
    for name in ("generator", "fused"):
        scores = [again["semantic"][name]["mIoU"], *again["semantic"][name]["IoU"].values()]
        scores += [again["panoptic"][name][g][q] for g in ("all", "things", "stuff") for q in ("PQ", "SQ", "RQ")]
        assert all(0 <= s <= 1 for s in scores)
    assert "NaN" not in to_json(result)
    print_result(result)
    shown = capsys.readouterr().out
    assert "5 images" in shown and "α = 0.4" in shown and "α sweep" in shown and "…" not in shown
    assert f"{100 * result['semantic']['fused']['mIoU']:.2f}" in shown


def test_a_class_that_never_occurs_is_null_not_nan(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, data = making.write_coco(project.root, 2)
    for annotation in data["annotations"]:  # no car anywhere, and no generator that says car
        for s in annotation["segments_info"]:
            s["category_id"] = making.CATEGORIES[0]
    making.write_annotations(project.root, data)
    make_run(project, tmp_path / "run")
    result = summarize(evaluation := project.evaluate(tmp_path / "run"), read_result_totals(evaluation), False)
    assert result["semantic"]["classes_present"] == 1
    assert not any(
        isinstance(v, float) and math.isnan(v) for v in result["semantic"]["upper_bound_mask"]["IoU"].values()
    )
    assert result["semantic"]["upper_bound_mask"]["IoU"]["car"] is None
    print_result(result)
    assert "–" in capsys.readouterr().out or result["panoptic"]["upper_bound_mask"]["things"]["PQ"] is not None
