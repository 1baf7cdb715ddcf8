"""Batches of images with different numbers of points, and chunks of points, through the stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.conftest import Project
from vitp_pipeline.artifacts.parts import ArrayReader
from vitp_pipeline.artifacts.proposals import open_proposals, points_of
from vitp_pipeline.classifier import mask_classifier
from vitp_pipeline.classifier.inference import fill_chunks, point_logits
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.geometry import normalize_points


def scores_of(project: Project, run: Path, **settings) -> dict[str, np.ndarray]:
    """Runs the stage; the point logits of every image."""
    before = set((run / "class_scores").iterdir())
    project.run("classify", run, **settings)
    (folder,) = set((run / "class_scores").iterdir()) - before
    proposals, found = open_proposals(run), {}
    for part, path in enumerate(sorted(folder.rglob("*.zarr.zip"))):
        with ArrayReader(path) as arrays:
            for record in proposals.read_index(0, part):
                found[record.image_id] = arrays.read(f"point_logits/{record.image_id}")
    return found


def alone(project: Project, run: Path, points_of, chunk: int) -> dict[str, np.ndarray]:
    """The same, image by image and chunk by chunk."""
    model = load_classifier(run / "classifier" / "default" / "model.safetensors")
    dataset, found = Dataset(load_recipe(project.recipe).manifest, project.data, "val"), {}
    for record in open_proposals(run):
        image = prepare_image(dataset.read_image(dataset.sample(record.image_id)), model.image_size)
        points = torch.from_numpy(normalize_points(points_of(record, "max"), record.view.original))
        pieces = fill_chunks(points, chunk, record.image_id) if chunk else points[None]
        logits = [point_logits(model, torch.from_numpy(image)[None], piece[None])[0] for piece in pieces]
        found[record.image_id] = torch.cat(logits)[: len(points)].numpy()
    return found


def test_images_of_a_batch_may_have_different_numbers_of_points(
    project: Project, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fewer(record, policy: str) -> np.ndarray:
        return points_of(record, policy)[: 1 + sum(record.image_id.encode()) % 5]

    monkeypatch.setattr(mask_classifier, "points_of", fewer)
    found = scores_of(project, copied, temperature=0.999999)  # another folder than the finished run's
    expected = alone(project, copied, fewer, 0)
    assert len({len(values) for values in expected.values()}) > 1 and found.keys() == expected.keys()
    for image_id, values in expected.items():
        np.testing.assert_allclose(found[image_id], values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_chunks_of_points(project: Project, copied: Path, batch_size: int) -> None:
    found = scores_of(project, copied, chunk=7, batch_size=batch_size)
    expected = alone(project, copied, points_of, 7)
    assert found.keys() == expected.keys()
    whole = alone(project, copied, points_of, 0)
    for image_id, values in expected.items():
        assert len(values) % 7  # the last chunk had to be filled up
        np.testing.assert_allclose(found[image_id], values, atol=1e-4, rtol=1e-4)
        assert np.abs(values - whole[image_id]).max() > 1e-3
