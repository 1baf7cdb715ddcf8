from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.stages import making
from tests.stages.making import Project, drawn, make_project, make_run
from vitp_pipeline.artifacts.mask_codec import MaskCodec, MaskLoss, loss_of
from vitp_pipeline.artifacts.proposals import ProposalStore
from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.evaluation.certainty import check_codec
from vitp_pipeline.evaluation.summary import print_result, result_of
from vitp_pipeline.postprocess.fusion import fuse
from vitp_pipeline.postprocess.semantic import semantic_scores

DEMO = load_recipe("demo")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, 3)


def test_the_share_of_certain_pixels_is_reported_when_asked_for(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(project, tmp_path / "run")
    without = result_of(project.evaluate(tmp_path / "run"))
    result = result_of(project.evaluate(tmp_path / "run", certain=True))
    found = result["semantic"].pop("certain")
    assert "certain" not in without["semantic"]
    for part in ("semantic", "panoptic", "masks"):  # nothing else changes
        assert result[part] == without[part]

    uncertain = pixels = 0
    for sample in project.dataset.samples:  # by hand: how far two scores may move apart, coarsely from both sides
        record, points = drawn(project.dataset, sample.image_id)
        probs = fuse(torch.from_numpy(record.class_logits), torch.from_numpy(points), 0.4)[0]
        kept = probs[torch.from_numpy(record.kept).long()]
        scores = semantic_scores(torch.from_numpy(record.masks), kept[None], record.view, record.protocol)[0]
        best = scores.topk(2, 0).values
        error = loss_of(record.masks, None).logit_error
        most = 2 * float(kept.sum(0).max()) * np.tanh(error / 4) + record.dropped_mass + 1e-5
        assert (best[0] - best[1]).numel() == record.view.original[0] * record.view.original[1]
        uncertain += int((best[0] - best[1] <= most).sum())
        pixels += best[0].numel()
    assert found["pixels"] == pixels and 0 < found["uncertain"] <= uncertain < pixels
    assert found["share"] == 1 - found["uncertain"] / pixels
    capsys.readouterr()
    result["semantic"]["certain"] = found
    print_result(result)
    assert f"{100 * found['share']:.3f} % of {pixels} pixels" in capsys.readouterr().out


def test_an_image_that_failed_has_no_pixels(project: Project, tmp_path: Path) -> None:
    first, second, third = (sample.image_id for sample in project.dataset.samples)
    make_run(project, tmp_path / "run", failed=(second,))
    evaluation = project.evaluate(tmp_path / "run", certain=True)
    result = result_of(evaluation, allow_missing=True)
    sizes = [drawn(project.dataset, i)[0].view.original for i in (first, third)]
    assert result["semantic"]["certain"]["pixels"] == sum(h * w for h, w in sizes)


def test_a_lower_object_threshold_than_the_store_was_made_for_is_refused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(project, tmp_path / "run")
    monkeypatch.setattr(ProposalStore, "codec", MaskCodec(drop_threshold=0.5))
    with pytest.raises(IncompatibleError, match=r"object_threshold = 0.4.*0.5.*drop_threshold = 0.4"):
        project.evaluate(tmp_path / "run")
    result = result_of(project.evaluate(tmp_path / "run", object_threshold=0.5))
    assert any("mIoU is approximate" in note and "0.5" in note for note in result["notes"])
    project.evaluate(tmp_path / "run", tasks=("semantic",))  # has no threshold


@given(asked=st.floats(0, 1), kept=st.floats(0, 1, exclude_min=True))
def test_the_advice_for_a_low_object_threshold_works(asked: float, kept: float) -> None:
    """The key that it names is allowed, and proposals made with it are good for the threshold."""
    settings = EvaluateSettings(object_threshold=asked)
    try:
        check_codec(MaskCodec(drop_threshold=kept), settings, ("panoptic",))
    except IncompatibleError as error:
        key, value = re.search(r"generate proposals with (\w+) = (\S+) ", error.hint).groups()
        advised = DEMO.stage(ProposalSettings, **parse_changes([f"{key}={value}"]))
        check_codec(advised.codec, settings, ("panoptic",))
        assert asked < kept
    else:
        assert asked >= kept


def test_a_floor_too_near_to_the_masks_is_refused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def floored(dataset, image_id: str):
        record, scores = drawn(dataset, image_id)
        return replace(record, loss=MaskLoss(0.01, -8.0, ring)), scores

    monkeypatch.setattr(making, "drawn", floored)
    ring = 0
    make_run(project, tmp_path / "near")
    with pytest.raises(IncompatibleError, match=r"up to 0 cells from a mask.*cells 1 apart.*lossless"):
        project.evaluate(tmp_path / "near")
    ring = 1
    make_run(project, tmp_path / "far")
    project.evaluate(tmp_path / "far")
