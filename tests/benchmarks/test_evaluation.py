"""Benchmarks of evaluation: their two sides do the same work, and give the same figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.store_server import NEEDS_SERVER


def test_all_tasks_of_coco_have_the_figures_of_openmmlab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PQ, AP and mIoU of a drawn image; the check of equality sees a difference."""
    from benchmarks import coco_tasks

    monkeypatch.setattr(coco_tasks, "SIZE", (96, 128))
    monkeypatch.setattr(coco_tasks, "GRID", (24, 32))
    work = coco_tasks.Work(tmp_path, 2)
    ours, theirs = work.ours(work.stored("lossless")), coco_tasks.Peer(work).figures()
    coco_tasks.check_equal(ours, theirs)
    assert ours.keys() == theirs.keys() and 5 < ours["PQ"] < 100 and 0 < ours["AP"] < 100
    with pytest.raises(AssertionError, match="PQ"):
        coco_tasks.check_equal(ours | {"PQ": ours["PQ"] + 1e-6}, theirs)


def test_the_limit_of_semantic_evaluation_reads_what_it_reads(tmp_path: Path) -> None:
    from benchmarks.limits import Stored, against_limit, profile
    from benchmarks.semantic import drawn_case

    case = drawn_case("drawn", (60, 90), 9, 3, 5, 2)
    work = Stored(case, tmp_path)
    counts = work.ours()
    assert counts.sum() == 2 * 60 * 90
    assert 0.1 < np.trace(counts) / counts.sum() < 1  # the ground truth is the label maps, moved
    found = against_limit(case, 1)
    assert found.units == 2 and found.ratio < 1
    assert any("semantic_label_maps" in name for *_, name in profile(case, 1).stats)


@pytest.mark.slow
@NEEDS_SERVER
def test_a_run_on_s3_has_the_figures_of_one_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import on_s3
    from vitp_pipeline.demo.scenes import draw_scenes

    for name in (*on_s3.VARIABLES, "AWS_ENDPOINT_URL", "VITP_SCRATCH"):
        monkeypatch.setenv(name, "")  # so that they are restored
    draw_scenes(tmp_path, "val", 2, seed=0)
    assert on_s3.measure("demo", tmp_path, "val", 2, 1).units == 2


def test_a_profile_lists_operators_that_differ_first(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from benchmarks.profiles import operators

    a = torch.ones(400, 400)
    found = operators(lambda: (a @ a).exp(), lambda: a @ a, 3)
    (exp,) = (row for row in found if row[0] == "aten::exp")
    assert exp[1] > 0 and exp[2] == 0
    assert capsys.readouterr().out.startswith("| operator | ours, ms | bare, ms |")
