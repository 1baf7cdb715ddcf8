"""Caching, shards, and what re-runs when something changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.conftest import STAGES, Project, snapshot
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.errors import IncompatibleError, MissingStageError, UsageError
from vitp_pipeline.evaluation.summary import result_of


def _stamps(run: Path) -> dict[str, int]:
    """Modification times; the memory of file digests is keyed by path, so a copied run fills it anew."""
    return {str(p): p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != "digests.json"}


def test_finished_stages_do_nothing(project: Project, copied: Path) -> None:
    result_of(project.run("evaluate", copied)[0])
    before = _stamps(copied)
    for stage in STAGES:
        project.run(stage, copied)
    result_of(project.run("evaluate", copied)[0])
    assert _stamps(copied) == before


def test_alpha_reruns_only_evaluate(project: Project, copied: Path) -> None:
    before = _stamps(copied)
    evaluation, outcome = project.run("evaluate", copied, alpha="0:1:0.25")
    assert outcome.made == len(evaluation.run.images)
    assert project.run("classify", copied).made == 0 and project.run("generate-proposals", copied).made == 0
    assert {k: v for k, v in _stamps(copied).items() if k in before} == before
    sweep = result_of(evaluation)["semantic"]["sweep"]
    assert [row["alpha"] for row in sweep] == [0, 0.25, 0.4, 0.5, 0.75, 1]


def test_another_classifier_reruns_classify_and_evaluate(project: Project, copied: Path) -> None:
    project.run("train-classifier", copied, name="other", seed=1)
    assert project.run("generate-proposals", copied).made == 0
    outcome = project.run("classify", copied, name="other")
    assert outcome.made == 9
    assert len(list((copied / "class_scores").iterdir())) == 2  # the first classifier's scores are kept


@pytest.mark.parametrize("stage", ["generate-proposals", "classify"])
def test_batch_size_reruns_nothing(stage: str, project: Project, copied: Path) -> None:
    assert project.run(stage, copied, batch_size=3).made == 0


def test_other_settings_are_refused(project: Project, copied: Path) -> None:
    with pytest.raises(IncompatibleError, match="part_size: 2 → 3"):
        project.run("generate-proposals", copied, part_size=3)
    with pytest.raises(IncompatibleError, match=r"epochs.*--name"):
        project.run("train-classifier", copied, epochs=5)
    with pytest.raises(UsageError, match="1 shards, not 2"):
        project.run("generate-proposals", copied, shard="0/2")


def test_stages_need_the_one_before(project: Project, tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="generate-proposals"):
        project.run("classify", tmp_path)
    project.run("generate-proposals", tmp_path, shard="0/2")
    with pytest.raises(MissingStageError, match="train-classifier"):
        project.run("classify", tmp_path)


def test_two_shards_give_what_one_gives(project: Project, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for shard in ("1/2", "0/2"):
        project.run("generate-proposals", out, shard=shard, batch_size=2)
    project.run("train-classifier", out)
    for shard in ("0/2", "1/2"):
        project.run("classify", out, shard=shard)
    for shard in ("1/2", "0/2"):
        project.run("evaluate", out, shard=shard)
    one, two = open_proposals(finished), open_proposals(out)
    for a, b in zip(one, two, strict=True):
        assert a.image_id == b.image_id and (a.points["max"] == b.points["max"]).all()
        np.testing.assert_allclose(a.class_logits, b.class_logits, atol=1e-4)
        rounded = sum(np.asarray(r.loss.errors(torch.from_numpy(r.masks))) for r in (a, b))
        assert (np.abs(a.masks - b.masks) <= rounded + 1e-3).all()
    first = result_of(project.run("evaluate", finished)[0])
    second = result_of(project.run("evaluate", out)[0])
    for task in ("semantic", "panoptic", "masks"):
        assert _figures(first[task]) == pytest.approx(_figures(second[task]), abs=1e-4)


def test_results_have_the_promised_shape(project: Project, finished: Path) -> None:
    result = result_of(project.run("evaluate", finished)[0])
    for name in ("generator", "classifier", "fused", "upper_bound_point", "upper_bound_mask"):
        assert 0 <= result["semantic"][name]["mIoU"] <= 1
        assert 0 <= result["panoptic"][name]["all"]["PQ"] <= 1
    assert result["semantic"]["alpha"] == 0.4
    assert set(result["provenance"]["fingerprints"]) == {"proposals", "class_scores", "evaluation"}
    # the project's own generator is trained: it draws well and names less well
    assert result["semantic"]["upper_bound_point"]["mIoU"] > result["semantic"]["generator"]["mIoU"] + 0.1


def test_same_bytes_every_time(project: Project, finished: Path, tmp_path: Path) -> None:
    project.run_all(tmp_path / "run")
    assert snapshot(tmp_path / "run") == snapshot(finished)


def _figures(value: object, prefix: str = "") -> dict[str, float]:
    """All numbers of a nested result, by path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _figures(item, f"{prefix}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in _figures(item, f"{prefix}/{i}").items()}
    return {prefix: float(value)} if isinstance(value, (int, float)) else {}


def test_figures_on_standard_output(project, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import json
    import sys

    from vitp_pipeline.cli.main import main
    from vitp_pipeline.runtime import progress

    monkeypatch.setattr(progress, "_hushed", False)  # for the tests after this one
    arguments = ["vitp", "evaluate", str(project.recipe), "--data-root", str(project.data), "--out", str(copied)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--alpha", "0,0.4,1", "--json", "-", "--quiet"])
    main()
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out)["images"]["measured"] == 9
