from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import making
from vitp_pipeline.classifier.training.validation import HeldOut, Validation
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.runtime.distributed import Distributed
from vitp_pipeline.storage.run_store import LocalStore


class ColorReader:
    """Names a point by the color of its pixel in images of twice the height and width; takes every car for a road."""

    mean = torch.zeros(1)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()

    def __call__(self, images: torch.Tensor, points: torch.Tensor, valid: None = None) -> torch.Tensor:
        height, width = images.shape[2:]
        at = ((points[0] + 1) / 2 * torch.tensor([height, width]) + 0.5).long()
        colors = images[0, :, at[:, 0].clamp(max=height - 1), at[:, 1].clamp(max=width - 1)].T
        distance = (colors[:, None] - torch.from_numpy(making.COLORS).float()).abs().sum(2)
        given = distance.argmin(1)
        given[given == 2] = 1
        return torch.nn.functional.one_hot(given, 3).float()[None] * 9


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(making.write_semantic(tmp_path / "data", 5), tmp_path / "data", "train")


def test_held_out_points_are_class_balanced_fixed_and_shared_among_processes(dataset: Dataset) -> None:
    found = HeldOut(dataset, dataset.samples, (64, 80), "float32")(ColorReader())
    confusion = found.confusion
    assert confusion.sum() == 5 * 250 and confusion.sum(1) == pytest.approx(1250 / 3, rel=0.1)
    assert confusion[2, 2] == 0 and confusion[2, 1] > 0.9 * confusion[2].sum()
    assert confusion[0, 0] > 0.9 * confusion[0].sum() and confusion[1, 1] > 0.9 * confusion[1].sum()
    regions = sum(len(np.setdiff1d(np.unique(dataset.read_semantic(s)), [-1])) for s in dataset.samples)
    assert found.regions[0] == regions and found.regions[1] == found.regions[2] == regions - 5  # all but the cars

    again = HeldOut(dataset, dataset.samples, (64, 80), "float32")(ColorReader())
    assert np.array_equal(again.confusion, confusion)
    parts = []
    for rank in range(3):
        held_out = HeldOut(dataset, dataset.samples, (64, 80), "float32", Distributed(rank, 3))
        held_out.distributed = Distributed()  # nobody to add to
        parts.append(held_out(ColorReader()))
    assert np.array_equal(sum(p.confusion for p in parts), confusion)
    assert np.array_equal(sum(p.regions for p in parts), found.regions)


def test_figures_and_files(tmp_path: Path) -> None:
    truth, given = np.array([0, 0, 0, 0, 2]), np.array([0, 0, 1, 0, 1])
    confusion = np.zeros((3, 3), np.int64)
    for t, g in zip(truth, given, strict=True):
        confusion[t, g] += 1
    validation = Validation(confusion, np.array([4, 3, 1]))
    expected = {
        "held_out_accuracy": (truth == given).mean(),
        "held_out_class_accuracy": np.mean([0.75, 0.0]),  # the class without points does not count
        "held_out_regions_center": 0.75,
        "held_out_regions_multi": 0.25,
    }
    assert validation.figures() == expected
    validation.save(LocalStore(tmp_path), tmp_path, ("sky", "road", "car"))
    content = json.loads((tmp_path / "validation.json").read_text())
    assert content.pop("classes") == {
        "sky": {"points": 4, "accuracy": 0.75},
        "road": {"points": 0, "accuracy": None},
        "car": {"points": 1, "accuracy": 0.0},
    }
    assert content == expected and np.array_equal(np.load(tmp_path / "confusion.npy"), confusion)
    assert Validation(np.zeros((3, 3), np.int64), np.zeros(3, np.int64)).figures() == {}
