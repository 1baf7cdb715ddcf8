"""Masks of another tool over a large photograph are never held as (masks, H, W) floats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.classifier.making import tiny_model
from tests.datasets import making
from vitp_pipeline.classifier.weights import save_classifier

SIZE, MASKS = (2000, 3000), 60
PROGRAM = """
import resource, sys
import scipy.ndimage, torch, timm, PIL.Image, pycocotools.mask
import vitp_pipeline.classifier.mask_classifier, vitp_pipeline.inference.predictor, vitp_pipeline.inference.proposers
from vitp_pipeline.cli.main import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("kilobytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_masks(tmp_path: Path) -> None:
    """Dense they would take 1.4 GB here."""
    making.write_png(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    corners = [[10 * n, n, 10 * n + 1600, n, 10 * n + 800, 1400 + n] for n in range(MASKS)]
    records = [
        {"image_id": "a", "category_id": n % 3, "score": 0.9, "segmentation": [polygon]}
        for n, polygon in enumerate(corners)
    ]
    (tmp_path / "masks.json").write_text(json.dumps(records))
    save_classifier(tiny_model(), tmp_path / "model.safetensors", {})
    words = ["predict", "a.png", "--masks", "masks.json", "--from", "coco", "--classifier", "model.safetensors"]
    words += ["--out", "out", "--task", "semantic"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 600_000
    result = json.loads((tmp_path / "out/results/a.json").read_text())
    assert len(result["masks"]) == MASKS and sum(found["pixels"] for found in result["semantic"]) == SIZE[0] * SIZE[1]
