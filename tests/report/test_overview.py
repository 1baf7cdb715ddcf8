from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report.test_page import read
from vitp_pipeline.report import overview
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation
from vitp_pipeline.report.overview import Outcome
from vitp_pipeline.report.paired import panoptic_areas


def test_outcomes_are_the_figures_with_their_intervals(stored: StoredEvaluation) -> None:
    found = {outcome.metric: outcome for outcome in overview.outcomes(stored)}
    assert list(found) == ["PQ", "mIoU", "mask accuracy"]
    for task, metric, value in (
        ("semantic", "mIoU", lambda v: v["mIoU"]),
        ("panoptic", "PQ", lambda v: v["all"]["PQ"]),
    ):
        of, outcome = stored.result[task], found[metric]
        assert (outcome.before, outcome.after) == (value(of["generator"]), value(of["fused"]))
        assert outcome.bound == value(of["upper_bound_point"])
    assert list(found["mIoU"].interval) == stored.result["semantic"]["bootstrap"]["gain_mIoU"]["interval"]
    # PQ by a slow loop over the same resamples
    areas = [panoptic_areas(stored, variant) for variant in ("generator", "fused")]
    draws = np.random.default_rng(0).multinomial(len(areas[0]), np.full(len(areas[0]), 1 / len(areas[0])), size=1000)

    def pq(times: np.ndarray, own: np.ndarray) -> float:
        iou, truth, predicted = np.moveaxis(np.einsum("n,nkc->kc", times, own), -1, 0)
        seen = truth + predicted > 0
        return float(np.mean(2 * iou[seen] / (truth + predicted)[seen]))

    gains = [pq(times, areas[1]) - pq(times, areas[0]) for times in draws]
    assert found["PQ"].interval == pytest.approx(np.percentile(gains, [2.5, 97.5]).tolist())


@pytest.mark.parametrize(
    ("interval", "kind", "said"),
    [
        ((0.01, 0.05), "better", "Fusion raises mIoU by 3.00 points, from 40.00 to 43.00."),
        ((-0.01, 0.05), "open", "These images do not show whether fusion changes mIoU (+3.00)"),
        (None, "", ""),
    ],
)
def test_verdicts(interval: tuple[float, float] | None, kind: str, said: str) -> None:
    outcome = Outcome("mIoU", 0.4, 0.43, interval, None)
    assert outcome.verdict == kind
    text = " ".join(overview.verdict([outcome], 100))
    assert said in text and ("seed" in text) == (interval is not None) and "Only" not in text
    assert interval is None or "Only 8 images" in " ".join(overview.verdict([outcome], 8))
    assert replace(outcome, before=0.5, interval=(-0.1, -0.05)).verdict == "worse"


def test_the_page_links_classes_and_images(page: Path, stored: StoredEvaluation) -> None:
    _, data = read(page)
    text = page.read_text(encoding="utf-8")
    top = text[text.index('id="summary"') : text.index('id="figures"')]
    assert "split val: 7 images, 3 classes" in top and "α = 0.4" in top and "upper bound (point labels)" in top
    counts = overview.images_of_classes(3, data["gallery"])
    linked = {int(k) for k in re.findall(r'href="#class-(\d)"', text)}
    assert linked == {k for k in range(3) if counts[k]}
    ticks = data["charts"]["classes:IoU"]["layout"]["yaxis"]["ticktext"]
    assert sum("<a href=" in tick for tick in ticks) == len(linked)
    assert all(int(n) < len(data["gallery"]) for n in re.findall(r'href="#image-(\d+)"', top))


def test_names_of_generators(stored: StoredEvaluation) -> None:
    proposals = stored.evaluation.proposals.run

    def named(**provenance: str) -> str:
        return overview.generator_name(replace(proposals, provenance={"command": "", **provenance}))

    assert named(generator="mask2former_swin-t.py") == "mask2former_swin-t"
    assert named(command="vitp generate-proposals camvid --out runs/x") == "the generator of the recipe camvid"
    assert named(command="vitp run camvid") == named() == "a generator"
