"""A member of every family from another package, used from end to end; and what is said without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from tests.stages.making import drawn, make_project, make_run
from vitp_pipeline.errors import UsageError
from vitp_pipeline.evaluation.count_reader import read_rows


def test_fusion_formula(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project, out = make_project(tmp_path, count=3), tmp_path / "run"
    make_run(project, out)
    with pytest.raises(UsageError, match=r'formula = "arithmetic". Choose one of: renormalized, raw'):
        project.evaluate(out, formula="arithmetic", alpha=0.6)
    request.getfixturevalue("plugin")
    rows = read_rows(project.evaluate(out, formula="arithmetic", alpha=0.6), ["masks"])
    for number, image_id in enumerate(rows.images):
        record, scores = drawn(project.dataset, image_id)
        mixed = 0.4 * softmax(record.class_logits[:, :-1], 1) + 0.6 * softmax(scores, 1)
        masks = rows.columns["masks"]
        query, fused = (masks[name][masks["image"] == number] for name in ("query", "fused"))
        assert len(query) and np.array_equal(fused, mixed.argmax(1)[query])
