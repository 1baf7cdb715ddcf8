"""`import-proposals --from ground-truth` through all stages: perfect masks, which the classifier alone names."""

from __future__ import annotations

from pathlib import Path

from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
from vitp_pipeline.stages.import_proposals import import_proposals


def test_with_the_masks_of_the_labels_only_the_classifier_errs(project, finished, tmp_path: Path) -> None:
    recipe, out = load_recipe(project.recipe), tmp_path / "run"
    settings = recipe.stage(ProposalSettings, config="(imported)", masks="lossless")
    outcome = import_proposals(recipe, settings, "ground-truth", None, project.data, out, choose_shard(None, {}))
    assert outcome.made == 9 and not outcome.failed
    classifier = str(finished / "classifier/default/model.safetensors")
    project.run("classify", out, classifier=classifier)
    measures = recipe.stage(EvaluateSettings, tasks=["semantic", "panoptic"])
    points = recipe.stage(ClassifySettings, classifier=classifier)
    evaluation = prepare(recipe, measures, points, (), project.data, out, choose_shard(None, {}))
    assert not evaluate_shards(evaluation, measures, points, range(1)).failed
    result = result_of(evaluation)
    assert result["class_agnostic"] and "generator" not in result["semantic"]
    for bound in ("upper_bound_point", "upper_bound_mask"):
        assert result["semantic"][bound]["pixel_accuracy"] > 0.999
        assert result["panoptic"][bound]["all"]["SQ"] > 0.999
    assert 0 < result["semantic"]["classifier"]["pixel_accuracy"] < 1
