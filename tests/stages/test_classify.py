from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.classifier.making import tiny_model
from tests.run_files import arrays_of
from tests.stages import making
from vitp_pipeline.artifacts.parts import ArrayReader
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.classifier.inference import point_logits
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import save_classifier
from vitp_pipeline.config.settings import ClassifySettings
from vitp_pipeline.errors import InputError
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.geometry import normalize_points
from vitp_pipeline.stages.classify import class_scores_run, classify

LOCAL_MAXIMA = 4


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run whose proposals have local maxima, and a function that classifies it and gives the first image's scores."""
    project, plain = making.make_project(tmp_path, 2), making.drawn

    def drawn(dataset, image_id):
        record, scores = plain(dataset, image_id)
        rng = np.random.default_rng(1)
        local_maxima = [rng.integers(0, size, making.QUERIES * LOCAL_MAXIMA) for size in record.view.original]
        return replace(
            record, points={**record.points, "local_maxima": np.stack(local_maxima, 1).astype(np.int32)}
        ), scores

    monkeypatch.setattr(making, "drawn", drawn)
    making.make_run(project, tmp_path / "run", part_size=2)
    model = tiny_model()
    file = tmp_path / "plain.safetensors"
    save_classifier(model, file, {})

    def score(**changes) -> np.ndarray:
        settings = project.recipe.stage(ClassifySettings, classifier=str(file), **changes)
        classify(project.recipe, settings, project.root, tmp_path / "run", ShardChoice())
        class_scores = class_scores_run(open_proposals(tmp_path / "run"), file, settings)
        with ArrayReader(arrays_of(class_scores.shard_folder(0), 0)) as arrays:
            return arrays.read(f"point_logits/{project.dataset.samples[0].image_id}")

    sample = project.dataset.samples[0]
    record = drawn(project.dataset, sample.image_id)[0]
    image = torch.from_numpy(prepare_image(project.dataset.read_image(sample), model.image_size))[None]
    where = torch.from_numpy(normalize_points(record.points["local_maxima"], record.view.original))[None]
    return score, point_logits(model, image, where)[0].double().unflatten(0, (making.QUERIES, LOCAL_MAXIMA))


def test_local_maxima_are_averaged_in_log_space_unless_told_otherwise(run) -> None:
    score, points = run
    geometric = points.softmax(2).prod(1) ** (1 / LOCAL_MAXIMA)
    found = torch.from_numpy(score(points="local_maxima")).softmax(1).double()
    torch.testing.assert_close(found, geometric / geometric.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    found = torch.from_numpy(score(points="local_maxima", average="probabilities")).softmax(1).double()
    torch.testing.assert_close(found, points.softmax(2).mean(1), atol=1e-5, rtol=1e-4)


def test_what_is_not_there_is_refused(run) -> None:
    score, _ = run
    with pytest.raises(InputError, match="no 'multi' points, only max, local_maxima"):
        score(points="multi")
