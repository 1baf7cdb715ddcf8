"""Binary masks of a large image are held as run lengths and made dense one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import making
from vitp_pipeline.artifacts.proposals import open_proposals

SIZE, MASKS = (1000, 1500), 40
MANIFEST = """
name = "large"
classes = [{ name = "a", label = 1, thing = true }]
[labels]
kind = "coco-instances"
[splits.val]
images = "images"
annotations = "val.json"
"""
PROGRAM = """
import resource, sys
import scipy.ndimage, torch, zarr, pyarrow.parquet
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
    """Dense they would take 0.7 GB here: 12 bytes a pixel and mask."""
    making.write_png(tmp_path / "images/a.png", np.zeros((*SIZE, 3), np.uint8))
    truth = {"images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}], "annotations": []}
    (tmp_path / "val.json").write_text(json.dumps({**truth, "categories": [{"id": 1, "name": "a"}]}))
    (tmp_path / "m.toml").write_text(MANIFEST)
    (tmp_path / "r.toml").write_text('manifest = "m.toml"')
    corners = [[10 * n, n, 10 * n + 600, n, 10 * n + 300, 400 + n] for n in range(MASKS)]
    results = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": [polygon]} for polygon in corners]
    (tmp_path / "masks.json").write_text(json.dumps(results))
    words = [
        "import-proposals",
        "r.toml",
        "--data-root",
        ".",
        "--out",
        "run",
        "--from",
        "coco",
        "--masks",
        "masks.json",
    ]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 300_000
    (record,) = open_proposals(tmp_path / "run")
    assert record.masks is not None and record.masks.shape == (MASKS, *SIZE)
    for number in (0, MASKS - 1):
        left, top = corners[number][:2]
        rows, cols = np.nonzero(record.masks[number] > 0)
        assert (rows.min(), cols.min()) == (top, left) and abs(len(rows) - 120_000) < 1000
