"""Whole stages on a GPU that is not there: generate-proposals, classify and evaluate, and training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.devices.pretend import PretendedTensor, pretended_gpu
from tools.gpu_bench import Bench, train
from tools.gpu_checks import classify_and_evaluate, forward, stage_one
from vitp_pipeline.classifier.training.loop import Trainer


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """As `tools/gpu_check.py` makes it, on a GPU."""
    return Bench("cuda", tmp_path_factory.mktemp("bench"), small=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The pretended GPU with the calls of `torch.cuda` by which the checks measure it."""
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 0)
    with pretended_gpu() as device:
        yield device


def test_the_classifier(bench: Bench, gpu: torch.device) -> None:
    figures = forward(bench)
    assert figures["linear_float32"] < 1e-4 < figures["linear_bfloat16"]


@pytest.mark.slow
def test_generate_proposals(bench: Bench, gpu: torch.device) -> None:
    """In threads, too: points are chosen and masks are stored in one beside the generator's."""
    figures = stage_one(bench)
    assert figures["logits"] < 1e-3 and figures["points"] > 0.99


@pytest.mark.slow
def test_classify_and_evaluate(bench: Bench, gpu: torch.device) -> None:
    figures = classify_and_evaluate(bench)
    assert figures["logits"] < 1e-4 and figures["mIoU_apart"] < 0.01 and figures["PQ_apart"] < 0.01


SETTINGS = {
    "sgd": {"optimizer": "sgd", "lr": 0.01, "accumulate": 2, "batch_size": 2, "class_prior": 0.5},
    "adamw": {"head": "mlp", "norm": "batch", "hold_out": 2},
    "lda": {"fit": "lda", "norm": "none", "epochs": 1, "hold_out": 2},
    "masks": {"prompt": "mask"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_training(name: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, backward, clip, step, validation, the model's file. Autograd takes the device by the name "meta"."""
    settings = {"precision": "float32", **SETTINGS[name]}
    expected = train(bench, "cpu", tmp_path / "cpu", "default", **settings)
    places: set[str] = set()
    step = Trainer._step
    with pretended_gpu("meta") as device:
        monkeypatch.setattr("vitp_pipeline.runtime.devices.choose_device", lambda name: device)

        def watched(self: Trainer, *given: object) -> float | None:
            places.update(type(p).__name__ for p in self.model.parameters())
            return step(self, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(Trainer, "_step", watched)
        found = train(bench, "cuda", tmp_path / "gpu", "default", **settings)
    assert places == (set() if name == "lda" else {PretendedTensor.__name__})
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    here, there = (load_file(tmp_path / run / "classifier/default/model.safetensors") for run in ("cpu", "gpu"))
    assert here.keys() == there.keys()
    for key, expected_weights in here.items():
        np.testing.assert_allclose(
            there[key], expected_weights, atol=1e-3 * np.abs(expected_weights).max(), err_msg=key
        )
