"""Measure mIoU over mask classification accuracy: a share of the predicted classes is replaced by ground truth.

    python tools/accuracy_needed.py coco-sample --data-root data/coco --out runs/coco-sample --name seed0

Every mask gets the ground-truth class at its max point with probability f, else the classifier's prediction; scores are
1 − v. Prints, for each f, the share of matched masks that are then classified correctly, and the mIoU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.stages.evaluate import prepare


def main() -> None:
    from vitp_pipeline.metrics.semantic import Confusion
    from vitp_pipeline.postprocess.mask_labels import label_at_points, majority_label

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="default")
    a = parser.parse_args()
    recipe = load_recipe(a.recipe)
    points = recipe.stage(ClassifySettings, name=a.name)
    everything = ShardChoice()
    evaluation = prepare(recipe, recipe.stage(EvaluateSettings), points, (), a.data_root, a.out, everything)
    shares = np.arange(0, 1.01, 0.1)
    states = [Confusion(len(recipe.manifest.classes)) for _ in shares]
    right, matched = np.zeros(len(shares)), 0
    for shard in range(evaluation.run.shards):
        for part in range(len(evaluation.run.parts(shard))):
            evaluation.proposals.require_one_view("these figures")
            with evaluation.class_scores.open_arrays(shard, part) as scores:
                for record in evaluation.proposals.read_part(shard, part):
                    truth = evaluation.dataset.read_semantic(evaluation.dataset.sample(record.image_id))
                    true_class = label_at_points(truth, record.points["max"])
                    given = scores.read(f"point_logits/{record.key}").argmax(1)
                    draw = np.random.default_rng([0, matched]).random(len(given))
                    classes = np.where((draw < shares[:, None]) & (true_class != IGNORE), true_class, given)
                    view = evaluation.segmenter.score(record, None, (), labels=list(classes))
                    for state, labels in zip(states, evaluation.segmenter.semantic([view]), strict=True):
                        state.update(labels, truth)
                    majority = np.full(len(given), IGNORE)
                    majority[record.kept] = majority_label(view.masks, record.view, truth)
                    likely = (1 - view.no_object[0].numpy() > 0.5) & (majority != IGNORE)
                    right += (classes == majority)[:, likely].sum(1)
                    matched += int(likely.sum())
    print("| ground-truth classes mixed in | mask classification accuracy | mIoU |\n|---:|---:|---:|")
    for share, count, state in zip(shares, right, states, strict=True):
        print(f"| {share:.0%} | {100 * count / matched:.1f} | {100 * state.miou():.2f} |")


if __name__ == "__main__":
    main()
