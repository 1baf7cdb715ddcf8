"""Stage four: fuse the scores, build the maps, measure. A pure function of the stored files and the ground truth.

Every image yields one row of counts (`evaluation.image_counts`) per variant (`evaluation.definition`); figures are
sums over rows in the manifest's order (`evaluation.totals`, `evaluation.summary`), so no split into shards can change
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.artifacts.run import create_or_check
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import MissingStageError
from vitp_pipeline.evaluation.certainty import check_codec
from vitp_pipeline.evaluation.definition import (
    Evaluation,
    Inputs,
    Measured,
    check_tasks,
    check_views,
    needs_classifier,
    settle_alpha,
)
from vitp_pipeline.evaluation.image_counts import CountMaker
from vitp_pipeline.execution.runner import Outcome, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.stages.classify import (
    check_manifest,
    class_scores_run,
    classifier_file,
    require_proposals,
    require_shards,
)
from vitp_pipeline.storage.fingerprint import fingerprint
from vitp_pipeline.storage.open_store import Run, open_store


def prepare(
    recipe: Recipe,
    settings: EvaluateSettings,
    classify: ClassifySettings,
    sweep: Sequence[float],
    data_root: Path,
    out: Run,
    shard: ShardChoice,
) -> Evaluation:
    """Find the inputs and make the evaluation's folder.

    Args:
        sweep: further values of α, measured beside the headline's. If all are 0, no classifier is read.
    Raises:
        MissingStageError: proposals or scores are not there.
        UserError: any of its other kinds.
    """
    store = open_store(out)
    proposals = open_proposals(store)
    check_manifest(proposals, recipe)
    require_shards(proposals, shard)
    settings = settle_alpha(settings, proposals.class_agnostic, recipe, sweep)
    dataset = Dataset(recipe.manifest, data_root, proposals.run.identity["settings"].get("split", "val"))
    check_tasks(settings, dataset)
    class_scores = None
    if needs_classifier(settings, sweep):
        class_scores = class_scores_run(proposals, classifier_file(recipe, classify, data_root, store), classify)
    measured = Measured.of(settings, classify, sweep, proposals.class_agnostic)
    identity = {
        "stage": "evaluation",
        "proposals": proposals.run.fingerprint,
        **({"class_scores": class_scores.fingerprint} if class_scores else {}),
        **measured.identity,
    }
    folder = store.folder / "evaluation" / fingerprint(identity)[:12]
    run = create_or_check(store, folder, identity, proposals.run.images, proposals.run.shards, proposals.run.part_size)
    evaluation = measured.evaluation(run, Inputs(proposals, class_scores), dataset)
    check_codec(evaluation.codec, settings, evaluation.tasks)
    if proposals.several_views:
        check_views(evaluation)
    return evaluation


def evaluate_shards(
    evaluation: Evaluation,
    settings: EvaluateSettings,
    classify: ClassifySettings,
    shards: Sequence[int],
    retry_failed: bool = False,
) -> Outcome:
    """Measures the images of some shards.

    Raises:
        MissingStageError: a shard's proposals or scores are not finished.
    """
    from vitp_pipeline.evaluation.summary import keep_shard_totals

    require_proposals(evaluation.proposals, shards)
    class_scores = evaluation.class_scores
    if class_scores and (missing := [s for s in shards if not class_scores.finished(s)]):
        raise MissingStageError(
            f"{class_scores.folder}: shard {missing[0]} is not classified",
            "Run `vitp classify` for it first",
        )
    return run_parts(
        evaluation.run,
        shards,
        lambda: CountMaker(evaluation, settings, classify.points),
        "evaluate",
        retry_failed,
        lambda shard: keep_shard_totals(evaluation, shard),
    )
