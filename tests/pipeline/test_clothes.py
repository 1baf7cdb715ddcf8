"""Two photographs of the clothes run, by its own recipe: shapes, and figures that belong together; and cheap labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.conftest import Project
from tools.heads import box_labels
from vitp_pipeline.datasets.regions import connected_regions
from vitp_pipeline.evaluation.summary import result_of

RECIPE = Path(__file__).parents[2] / "stages/clothing-co-parsing.toml"


def test_boxes_name_pixels_by_the_smallest_box() -> None:
    labels = np.zeros((40, 40), np.int16)
    labels[5:35, 10] = labels[34, 10:30] = 1  # an L, whose box covers the dress beside it
    labels[10:20, 15:25] = 2
    drawn = box_labels(*connected_regions(labels))
    expected = np.zeros_like(labels)
    expected[5:35, 10:30] = 1
    expected[10:20, 15:25] = 2
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.slow
def test_two_photographs(shared: Path, tmp_path: Path) -> None:
    project, run = Project(shared / "data/ccp", RECIPE), tmp_path / "run"
    project.run("generate-proposals", run, limit=2)
    small = {"image_size": (252, 168), "steps": 1, "batch_size": 2, "points_per_image": 50, "workers": 2}
    project.run("train-classifier", run, **small)
    project.run("classify", run)
    evaluation, _ = project.run("evaluate", run)
    result, dataset, scored = result_of(evaluation), evaluation.dataset, evaluation.class_scores
    assert result["images"] == {"measured": 2, "of": 2, "failed": []} and result["masks"]["matched"] > 10
    semantic = result["semantic"]
    assert 0 < semantic["generator"]["mIoU"] < semantic["upper_bound_mask"]["mIoU"] < 1
    assert max(semantic[name]["pixel_accuracy"] for name in ("generator", "classifier", "fused")) < 1
    with scored.open_arrays(0, 0, scored.read_rows(0, 0)) as arrays:
        for record in evaluation.proposals:
            size = dataset.read_semantic(dataset.sample(record.image_id)).shape
            assert record.view.original == size and max(size) == 560
            assert record.class_logits.shape == (30, 60) and record.points["max"].shape == (30, 2)
            assert (record.points["max"] >= 0).all() and (record.points["max"] < size).all()
            assert record.points["multi"].shape == (30 * 16, 2)
            assert arrays.read(f"point_logits/{record.key}").shape == (30, 59)
            view = evaluation.segmenter.score(record, np.zeros((30, 59), np.float32), (0.0,))
            (labels,) = evaluation.segmenter.semantic([view])
            assert labels.shape == size and labels.min() >= 0 and labels.max() < 59
