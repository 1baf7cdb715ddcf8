"""README's strip of photographs: which names are right, and four tiles an image of a small run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.conftest import Project
from tools import draw_strip
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.report.loaded_evaluation import open_evaluation


def test_a_region_is_right_where_most_of_its_labeled_pixels_are() -> None:
    labels, truth = np.zeros((40, 60), int), np.full((40, 60), IGNORE)
    labels[:, 30:] = 1
    labels[5:15, 5:15] = 2
    labels[0, 0] = 3  # too small for a name
    truth[:, 30:50] = 1
    truth[5:15, 5:9] = 2
    truth[5:15, 9:15] = 0
    found = {(region.category, region.right) for region in draw_strip.regions(labels, truth)}
    assert found == {(0, None), (1, True), (2, False)}


@pytest.mark.slow
def test_a_row_for_every_image(
    project: Project, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Titles, and two rows of four tiles, the first of them the image."""
    stored = open_evaluation(finished, project.data)
    images, out = stored.rows.images[:2], tmp_path / "strip.png"
    words = ["draw_strip.py", str(finished), *images, "--data-root", str(project.data), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    draw_strip.main()
    with Image.open(out) as strip:
        height = round(draw_strip.WIDTH * 192 / 256)
        width = 4 * draw_strip.WIDTH + 3 * draw_strip.GAP
        assert strip.size == (width, draw_strip.TITLE + 2 * height + draw_strip.GAP)
        tiles = np.asarray(strip.convert("RGB"))[draw_strip.TITLE :]
    shown = tiles[:height, : draw_strip.WIDTH].astype(int)
    dataset = stored.evaluation.dataset
    photo = Image.fromarray(dataset.read_image(dataset.sample(images[0])))
    photo = np.asarray(photo.resize((draw_strip.WIDTH, height), Image.Resampling.LANCZOS), int)
    assert np.abs(shown - photo).mean() < 12, "the first tile is the image, in few colors"


def test_an_image_that_the_run_lacks(project: Project, finished: Path) -> None:
    with pytest.raises(SystemExit, match="the run has no image 777"):
        list(draw_strip.read(open_evaluation(finished, project.data), ["777"]))
