from __future__ import annotations

import numpy as np
import pytest

from tests.stages.making import Project, drawn
from vitp_pipeline.geometry import View
from vitp_pipeline.report import mask_statistics
from vitp_pipeline.report.gallery import choose
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation
from vitp_pipeline.report.mask_statistics import MaskFacts

SOURCES = ("generator", "classifier", "fused")


@pytest.fixture(scope="module")
def facts(stored: StoredEvaluation) -> MaskFacts:
    return mask_statistics.read_masks(stored)


def test_names_and_labels_are_those_of_the_rows(stored: StoredEvaluation, facts: MaskFacts) -> None:
    rows = stored.rows.columns["masks"]
    known = facts.known
    np.testing.assert_array_equal(facts.image[known], rows["image"])
    np.testing.assert_array_equal(facts.query[known], rows["query"])
    np.testing.assert_array_equal(facts.label[known], rows["label"])
    for name in SOURCES:
        np.testing.assert_array_equal(facts.predicted[name][known], rows[name])


def test_confidence_and_area_by_hand(stored: StoredEvaluation, facts: MaskFacts, project: Project) -> None:
    for place in range(0, len(facts.image), 5):
        record, scores = drawn(project.dataset, stored.rows.images[facts.image[place]])
        query = facts.query[place]
        inside = np.exp(record.class_logits[query, :3].astype(float))
        outside = np.exp(scores[query].astype(float))
        inside, outside = inside / inside.sum(), outside / outside.sum()
        fused = inside**0.6 * outside**0.4
        expected = {"generator": inside, "classifier": outside, "fused": fused / fused.sum()}
        for name, probs in expected.items():
            assert facts.confidence[name][place] == pytest.approx(probs.max(), abs=1e-5)
            assert facts.predicted[name][place] == probs.argmax()
        own = record.masks[record.kept.tolist().index(query)]
        assert facts.area[place] == pytest.approx((own > 0).sum() / own.size)


def test_padding_is_no_part_of_an_area() -> None:
    view = View(original=(40, 60), resized=(20, 30), padded=(32, 32), mask=(16, 16))
    plane = np.full((1, 16, 16), 5.0)
    plane[0, :5] = -5
    assert mask_statistics.mask_areas(plane, view)[0] == 0.5  # rows 5 to 9 of 10


def test_objectness_survives_large_logits() -> None:
    assert mask_statistics.objectness_of(np.array([[500.0, 0.0, 500.0], [0.0, 0.0, 800.0]])) == pytest.approx(
        [0.5, 0.0]
    )


def test_uncertainty_is_between_sure_and_any_class(facts: MaskFacts) -> None:
    assert ((facts.uncertainty > 0) & (facts.uncertainty < 1)).all()


def made(
    label: list[int], generator: list[int], fused: list[int], confidence: list[float], area: list[float]
) -> MaskFacts:
    predicted = {"generator": np.array(generator), "classifier": np.array(fused), "fused": np.array(fused)}
    confidence = dict.fromkeys(SOURCES, np.array(confidence))
    count = len(label)
    return MaskFacts(
        np.zeros(count, int), np.arange(count), np.array(label), np.array(area), predicted, confidence, np.zeros(1)
    )


def test_reliability_by_a_slow_loop(facts: MaskFacts) -> None:
    found = mask_statistics.reliability(facts)
    for name in SOURCES:
        bins: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
        for i in np.flatnonzero(facts.known):
            confidence = facts.confidence[name][i]
            bins[min(9, int(confidence * 10))].append((confidence, facts.predicted[name][i] == facts.label[i]))
        assert found[name]["count"] == [len(b) for b in bins]
        total = sum(map(len, bins))
        ece = sum(abs(np.mean([s for s, _ in b]) - np.mean([r for _, r in b])) * len(b) / total for b in bins if b)
        assert found[name]["ece"] == pytest.approx(ece)
        for b, confidence, right in zip(bins, found[name]["confidence"], found[name]["right"], strict=True):
            assert (confidence is None) == (not b)
            if b:
                assert confidence == pytest.approx(np.mean([s for s, _ in b]))
                assert right == pytest.approx(np.mean([r for _, r in b]))


def test_help_and_harm_counts_every_known_mask_once(facts: MaskFacts) -> None:
    known = facts.known
    for bins in mask_statistics.help_and_harm(facts, np.array([10, 20, 30])).values():
        assert sum(b["masks"] for b in bins) == known.sum()
        assert sum(b["before"] for b in bins) == facts.right("generator")[known].sum()
        assert sum(b["after"] for b in bins) == facts.right("fused")[known].sum()
        assert all(b["before"] + b["righted"] - b["wronged"] == b["after"] for b in bins)


def test_help_and_harm_of_four_masks() -> None:
    facts = made([0, 1, 1, -1], [1, 1, 0, 0], [0, 0, 0, 1], [0.05, 0.95, 1.0, 0.5], [0.001, 0.3, 1.0, 0.5])
    found = mask_statistics.help_and_harm(facts, np.array([1, 99, 0]))
    by_area = [(b["masks"], b["righted"], b["wronged"]) for b in found["area"]]
    assert by_area == [(1, 1, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (2, 0, 1)]
    assert [b["masks"] for b in found["confidence"]] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert [(b["bin"], b["masks"]) for b in found["frequency"]] == [("1 %", 1), ("99 %", 2)]


def test_frequency_groups_are_fifths_of_the_classes() -> None:
    pixels = np.random.default_rng(1).permutation(np.arange(12) * 7)  # one class has none
    group, names = mask_statistics.frequency_groups(pixels)
    assert len(names) == 5
    sizes = [((group == i) & (pixels > 0)).sum() for i in range(5)]
    assert sum(sizes) == 11 and max(sizes) - min(sizes) <= 1
    for i in range(4):
        assert pixels[(group == i) & (pixels > 0)].max() < pixels[(group == i + 1) & (pixels > 0)].min()


def test_gallery_takes_the_extremes_once() -> None:
    rng = np.random.default_rng(0)
    gains, unsure = rng.normal(0, 1, 1000), rng.random(1000)
    gains[::10], gains[5] = 0.0, np.nan
    chosen = choose(gains, unsure)
    kinds = {k: [c.image for c in chosen if c.kind == k] for k in ("improved", "harmed", "uncertain")}
    assert [len(v) for v in kinds.values()] == [20, 20, 20] and len({c.image for c in chosen}) == 60
    finite = np.where(np.isnan(gains), 0, gains)
    assert (
        kinds["improved"] == np.argsort(-finite)[:20].tolist() and kinds["harmed"] == np.argsort(finite)[:20].tolist()
    )
    rest = np.setdiff1d(np.arange(1000), kinds["improved"] + kinds["harmed"])
    assert kinds["uncertain"] == rest[np.argsort(-unsure[rest])][:20].tolist()


def test_gallery_shows_no_image_as_what_it_is_not() -> None:
    chosen = choose(np.array([0.0, 0.2, -0.1, np.nan]), np.array([0.5, 0.9, 0.9, np.nan]))
    assert [(c.image, c.kind) for c in chosen] == [(1, "improved"), (2, "harmed"), (0, "uncertain")]
