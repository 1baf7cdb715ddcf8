"""Every number is computed again from the rows, read with pyarrow alone, in plain loops."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow.dataset as ds
import pytest

from vitp_pipeline.evaluation.definition import UPPER_BOUNDS, variant_of
from vitp_pipeline.report import figures
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation


@pytest.fixture(scope="module")
def raw(stored: StoredEvaluation) -> list[dict]:
    folder = stored.evaluation.run.folder / "shards"
    files = sorted(str(path) for path in folder.rglob("part-*.parquet"))
    return [row for file in files for row in ds.dataset(file).to_table().to_pylist()]


def pairs(row: dict, variant: int) -> list[tuple[int, int, int]]:
    return [(e["truth"], e["predicted"], e["pixels"]) for e in row["semantic"] if e["variant"] == variant]


def number(stored: StoredEvaluation, alpha: float) -> int:
    return stored.evaluation.variants.index(variant_of(alpha))


def iou(raw: list[dict], variant: int, k: int) -> float:
    found = [p for row in raw for p in pairs(row, variant)]
    both = sum(n for t, p, n in found if t == p == k)
    return both / sum(n for t, p, n in found if k in (t, p))


def test_headline_table(stored: StoredEvaluation, raw: list[dict]) -> None:
    table = figures.headline_table(stored, "semantic")
    rows = {row["variant"]: dict(zip(table["columns"], row["values"], strict=True)) for row in table["rows"]}
    assert list(rows) == ["generator", "classifier", "fused", "upper_bound_point", "upper_bound_mask"]
    assert table["columns"][:2] == ["mIoU", "pixel accuracy"]
    for name, alpha in {"generator": 0.0, "classifier": 1.0, "fused": 0.4}.items():
        variant = number(stored, alpha)
        assert rows[name]["mIoU"] == pytest.approx(np.mean([iou(raw, variant, k) for k in range(3)]))
        found = [p for row in raw for p in pairs(row, variant)]
        assert rows[name]["pixel accuracy"] == pytest.approx(
            sum(n for t, p, n in found if t == p) / sum(n for *_, n in found)
        )
    fused = next(row for row in table["rows"] if row["variant"] == "fused")
    assert fused["gains"][0] == pytest.approx(rows["fused"]["mIoU"] - rows["generator"]["mIoU"])
    assert fused["title"] == "fused (α = 0.4)"


def test_panoptic_table_has_its_groups_in_order(stored: StoredEvaluation) -> None:
    table = figures.headline_table(stored, "panoptic")
    assert table["columns"] == [f"{f}{g}" for g in ("", " things", " stuff") for f in ("PQ", "SQ", "RQ")]
    fused = next(row for row in table["rows"] if row["variant"] == "fused")
    assert fused["values"][0] == stored.result["panoptic"]["fused"]["all"]["PQ"]
    assert fused["values"][3] == stored.result["panoptic"]["fused"]["things"]["PQ"]


def test_a_task_that_is_not_known_yet_is_read_all_the_same(stored: StoredEvaluation) -> None:
    from dataclasses import replace

    def values(ap: float) -> dict:
        measure = {"AP": ap, "AP50": 2 * ap, "classes": 1, "per_class": {"car": ap}}
        return {"coco": measure, "boundary": dict(measure, AP=ap / 2)}

    instance = {"generator": values(0.1), "fused": values(0.2), "sweep": [{"alpha": 0.0, "AP": 0.1}]}
    other = replace(stored, result=stored.result | {"instance": instance, "semantic": None})
    assert figures.tasks_of(other) == ("panoptic", "instance")
    table = figures.headline_table(other, "instance")
    assert dict(zip(table["columns"], table["rows"][1]["values"], strict=True)) == {
        "AP coco": 0.2,
        "AP50 coco": 0.4,
        "AP boundary": 0.1,
        "AP50 boundary": 0.4,
    }
    assert figures.class_measures(other)["AP coco"]["fused"] == [None, None, 0.2]
    assert figures.sweep(other)["AP"]["value"] == [0.1]


def test_sweep(stored: StoredEvaluation, raw: list[dict]) -> None:
    curves = figures.sweep(stored)
    assert list(curves) == ["mIoU", "pixel accuracy", "PQ"]
    assert curves["mIoU"]["alpha"] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for alpha, value in zip(curves["mIoU"]["alpha"], curves["mIoU"]["value"], strict=True):
        assert value == pytest.approx(np.mean([iou(raw, number(stored, alpha), k) for k in range(3)]))
    assert curves["mIoU"]["upper_bound"] == stored.result["semantic"]["upper_bound_mask"]["mIoU"]


def test_class_measures(stored: StoredEvaluation, raw: list[dict]) -> None:
    measures = figures.class_measures(stored)
    assert list(measures) == ["IoU", "PQ"]
    for k in range(3):
        assert measures["IoU"]["fused"][k] == pytest.approx(iou(raw, number(stored, 0.4), k))
        assert measures["IoU"]["generator"][k] == pytest.approx(iou(raw, number(stored, 0.0), k))


def test_confusions_and_frequencies(stored: StoredEvaluation, raw: list[dict]) -> None:
    found = figures.confusions(stored)
    for name, alpha in {"generator": 0.0, "fused": 0.4}.items():
        expected = np.zeros((4, 4), int)
        for row in raw:
            for t, p, n in pairs(row, number(stored, alpha)):
                expected[t, p] += n
        np.testing.assert_array_equal(found[name], expected)
    np.testing.assert_array_equal(figures.class_pixels(stored.rows, 3), found["generator"].sum(1)[:3])


def test_what_changed_most() -> None:
    before = np.array([[50, 0, 50], [10, 90, 0], [0, 0, 10]])
    after = np.array([[95, 5, 0], [0, 90, 10], [0, 0, 10]])
    rows = figures.changed_confusions({"generator": before, "fused": after}, ("a", "b", "c"))
    assert [(r["truth"], r["predicted"], r["pixels"]) for r in rows[:2]] == [("a", "c", -50), ("b", "a", -10)]
    assert rows[0]["before"] == 0.5 and rows[0]["after"] == 0.0
    assert {(r["truth"], r["predicted"]) for r in rows} == {("a", "c"), ("a", "b"), ("b", "a"), ("b", "c")}


def test_folding_keeps_every_pixel() -> None:
    counts = np.random.default_rng(0).integers(0, 50, (9, 9))
    chosen = np.array([1, 4, 7])
    folded = figures.folded(counts, chosen)
    assert folded.sum() == counts.sum() and folded.shape == (4, 4)
    others = np.setdiff1d(np.arange(9), chosen)
    assert folded[1, 2] == counts[4, 7] and folded[3, 0] == counts[others, 1].sum()
    assert folded[3, 3] == counts[np.ix_(others, others)].sum()


def test_the_most_confused_classes_are_shown() -> None:
    counts = np.diag([100, 100, 100, 0])
    counts[0, 2] = 5
    np.testing.assert_array_equal(figures.most_confused({"generator": counts, "fused": counts}, 2), [0, 2])
    assert 3 not in figures.most_confused({"generator": counts, "fused": counts}, 4)  # never seen


def test_image_accuracies(stored: StoredEvaluation, raw: list[dict]) -> None:
    found = figures.image_accuracies(stored)
    for name, alpha in {"generator": 0.0, "fused": 0.4}.items():
        for i, row in enumerate(raw):
            own = pairs(row, number(stored, alpha))
            expected = sum(n for t, p, n in own if t == p) / sum(n for *_, n in own)
            assert stored.rows.images[i] == row["image_id"] and found[name][i] == pytest.approx(expected)


def test_accuracy_of_images_takes_memory_by_entries_not_by_images_and_classes() -> None:
    """Areas of every image and class would be 20,000 × 2,000 × 3 numbers, 960 MB."""
    images, classes = 20_000, 2_000
    random = np.random.default_rng(0)
    truth = np.repeat(random.integers(0, classes, images), 2)
    predicted = np.where(np.arange(2 * images) % 2, truth, (truth + 1) % classes)
    pixels = random.integers(1, 100, 2 * images)
    entries = {"image": np.arange(images).repeat(2), "truth": truth, "predicted": predicted, "pixels": pixels}
    columns = {"semantic": {**entries, "variant": np.zeros(2 * images, np.int32)}}
    names, alone = ("generator",), variant_of(0)
    evaluation = SimpleNamespace(compared=names, classified_by=names, variants=(alone, *UPPER_BOUNDS), headline=alone)
    rows = SimpleNamespace(images=[""] * images, columns=columns)
    tracemalloc.start()
    found = figures.image_accuracies(SimpleNamespace(evaluation=evaluation, rows=rows))["generator"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, pixels[1::2] / pixels.reshape(-1, 2).sum(1))
    assert peak < 50e6
