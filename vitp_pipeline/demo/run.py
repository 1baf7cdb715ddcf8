"""`vitp demo`: draw scenes, then run the four stages on them as a user would."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.runtime.output import show
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.atomic_files import refusals

TRAIN_SCENES, VAL_SCENES, SEED = 300, 60, 0


@dataclass(frozen=True)
class Demo:
    """Result of the demo. `result` is that of `vitp evaluate`, as in its JSON."""

    result: dict[str, Any]
    picture: Path
    run: Path
    scenes: Path
    seconds: float


def run_demo(out: Path) -> Demo:
    """Draw 300 + 60 scenes below `out`, and run the stages on them.

    Raises:
        UserError: the packages of the extra `openmmlab` are not installed.
    """
    from vitp_pipeline.demo.picture import draw_result
    from vitp_pipeline.demo.scenes import draw_scenes
    from vitp_pipeline.evaluation.summary import result_of
    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv
    from vitp_pipeline.stages.classify import classify
    from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
    from vitp_pipeline.stages.generate_proposals import generate_proposals
    from vitp_pipeline.stages.train_classifier import train_classifier

    began = time.monotonic()
    recipe, data_root, run, everything = load_recipe("demo"), out / "scenes", out / "run", ShardChoice()
    if not (data_root / "complete").exists():
        prepare_mmcv()  # the first stage needs OpenMMLab's packages: better said now
        say(f"drawing {TRAIN_SCENES} training scenes and {VAL_SCENES} others")
        with refusals(data_root):
            draw_scenes(data_root, "train", TRAIN_SCENES, SEED)
            draw_scenes(data_root, "val", VAL_SCENES, SEED)
            (data_root / "complete").touch()
    say("1. generate-proposals: a small Mask2Former, trained on such scenes at half resolution, draws masks")
    generate_proposals(recipe, recipe.stage(ProposalSettings), data_root, run, everything).report("proposals")
    say("2. train-classifier: a small ViT-P learns to classify points from the ground truth of the training scenes")
    train_classifier(recipe, recipe.stage(TrainSettings), data_root, run)
    say("3. classify: it classifies the point of every mask")
    settings = recipe.stage(ClassifySettings)
    classify(recipe, settings, data_root, run, everything).report("classify")
    say("4. evaluate: the scores of both are fused and measured")
    measures = recipe.stage(EvaluateSettings)
    evaluation = prepare(recipe, measures, settings, (), data_root, run, everything)
    evaluate_shards(evaluation, measures, settings, range(evaluation.run.shards)).report("evaluate")
    result = result_of(evaluation)
    picture = draw_result(evaluation, out / "demo.png")
    return Demo(result, picture, run, data_root, time.monotonic() - began)


def print_demo(demo: Demo) -> None:
    """Print the metrics, and where to look next, on standard output."""
    from vitp_pipeline.evaluation.summary import print_result

    print_result(demo.result)
    show(
        "These figures are for synthetic scenes: they show that the pipeline works, not how good it is on photographs."
    )
    show(f"Picture: {demo.picture}")
    show(f"Run directory: {demo.run} (try `vitp status {demo.run}`)")
    show(f"{demo.seconds:.0f} seconds in all. A second `vitp demo` has nothing to do.")
