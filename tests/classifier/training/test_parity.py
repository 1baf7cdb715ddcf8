"""Ten steps of training beside a loop that is written from a description of the authors' code."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.classifier.official_model import OfficialTraining, OfficialViT, official_factor
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.training.data import Batch
from vitp_pipeline.classifier.training.loop import Trainer
from vitp_pipeline.config.settings import TrainSettings

WIDTH, DEPTH, HEADS, SIZE, NAMES = 16, 2, 2, (42, 56), ("sky", "road", "car", "tree")
STEPS, WARMUP, LR, POINT_LR = 10, 3, 0.05, 0.01

LOSSES = [1.536785, 1.613676, 1.532173, 1.461694, 1.409571, 1.391767, 1.411906, 1.417033, 1.356524, 1.384535]
MOVED = {
    "cls_embeddings.weight": 0.027661,
    "pos_embed": 0.349713,
    "patch_embed.proj.weight": 5.149776,
    "blocks.0.attn.qkv.weight": 5.301889,
    "blocks.1.mlp.fc2.bias": 0.096444,
    "norm.weight": 0.16218,
    "head.weight": 1.271643,
    "head.bias": 0.081906,
}
"""Sums of the absolute changes of some weights."""


def official() -> OfficialViT:
    """Weights that are a formula, so that no generator of random numbers decides about golden values."""
    model = OfficialViT(WIDTH, DEPTH, HEADS, len(NAMES))
    with torch.no_grad():
        for number, (name, value) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 1.7 + number).view(value.shape)
            value.copy_(
                (1 + 0.1 * wave if ("norm" in name and "weight" in name) or "gamma" in name else 0.3 * wave).float()
            )
        model.mask_token.zero_()
    return model


def ours(state: dict[str, torch.Tensor]) -> PointViT:
    args = json.dumps({"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS})
    config = ModelConfig("vit_small_patch14_dinov2", NAMES, SIZE, args, point_dim=2, pos_embed="offset")
    model = PointViT(config)
    renamed = {
        {"cls_embeddings.weight": "point_layer.weight"}.get(
            k, k if k.startswith("head.") else f"backbone.{k}"
        ): v.clone()
        for k, v in state.items()
        if k != "mask_token"
    }
    model.load_state_dict(renamed | {"backbone.cls_token": torch.zeros(1, 1, WIDTH)})
    return model


def theirs(model: PointViT) -> dict[str, torch.Tensor]:
    """A classifier's weights by the authors' names."""
    names = {"point_layer.weight": "cls_embeddings.weight"}
    state = {names.get(k, k.removeprefix("backbone.")): v for k, v in model.state_dict().items()}
    return {k: v for k, v in state.items() if k != "cls_token"}


class FixedBatches:
    """Three images of seven points a step, whose colors say the classes."""

    steps_per_epoch, skipped = 4, {}

    def from_step(self, first: int, last: int):
        for step in range(first, last):
            yield step, self.batch(step)

    def require_readable(self) -> None:
        """All are."""

    @staticmethod
    def batch(step: int) -> Batch:
        n = np.arange(3 * 3 * SIZE[0] * SIZE[1]).reshape(3, 3, *SIZE)
        images = ((n * 7919 + step * 104_729) % 251).astype(np.uint8)
        m = np.arange(21).reshape(3, 7) + 31 * step
        points = np.stack([(m * 17 % 42) / 42, (m * 29 % 56) / 56], -1).astype(np.float32) * 2 - 1
        return Batch(*map(torch.from_numpy, (images, points, m * 5 % 11 % 4)))


def trained(**changes) -> tuple[list[float], PointViT]:
    """The losses of ten steps of ours, and the model after them."""
    keys = {"lr": LR, "point_lr": POINT_LR, "warmup_steps": WARMUP, "steps": STEPS, "batch_size": 3, "device": "cpu"}
    settings = TrainSettings(**{**keys, "image_size": SIZE, "precision": "float32", **changes})
    model, losses = ours(official().state_dict()), []
    quiet = SimpleNamespace(load=lambda: None, log=lambda line: None, write_log=lambda: None)
    quiet.is_whole, quiet.require_shared = lambda name: True, lambda distributed, step: None
    trainer = Trainer(model, FixedBatches(), settings, quiet, torch.device("cpu"))
    real = trainer._step
    trainer._step = lambda *of: losses.append(real(*of)) or losses[-1]
    trainer.run()
    return losses, model


def test_ten_steps_are_those_of_the_authors() -> None:
    model = official()
    loop = OfficialTraining(model, LR, WARMUP, STEPS, POINT_LR)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = []
    for step in range(STEPS):
        batch = FixedBatches.batch(step)
        expected.append(loop.step(step, (batch.images / 255 - mean) / std, batch.points, batch.classes))
    assert min(loop.norms) < 1 < max(loop.norms)  # clipping acts in some steps and not in others
    losses, found = trained()
    assert losses == pytest.approx(expected, abs=2e-6)
    start, state = official().state_dict(), theirs(found)
    for key, value in model.state_dict().items():
        if key != "mask_token":
            torch.testing.assert_close(state[key], value, atol=2e-6, rtol=0)
            assert float((value - start[key]).abs().max()) > 1e-4, key  # it has learned
    # golden, so that a change in both loops shows
    assert losses == pytest.approx(LOSSES, abs=1e-4)
    moved = {key: float((state[key].double() - start[key].double()).abs().sum()) for key in MOVED}
    assert moved == pytest.approx(MOVED, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"point_lr": -1.0},
        {"warmup_steps": 0},
        {"warmup_steps": -1, "warmup": 0.2},
        {"clip": 0.0},
        {"steps": 11},
        {"weight_decay": 0.1},
        {"backbone_lr": 0.04},
    ],
    ids=str,
)
def test_every_part_of_it_counts(changes: dict) -> None:
    """Each setting that the authors' loop fixes moves the weights by more than the tolerance above."""
    plain, changed = (theirs(model) for _, model in (trained(), trained(**changes)))
    assert max(float((plain[k] - changed[k]).abs().max()) for k in plain) > 1e-4


def test_schedule_of_the_authors() -> None:
    assert [official_factor(s, 3, 10) for s in (0, 1, 3, 10)] == [0.0, 1 / 3, 1.0, 0.0]
    assert official_factor(18_750, 0, 19_200) == pytest.approx(0.0014, abs=5e-5)
    assert official_factor(19_100, 80_000, 19_200) == pytest.approx(0.239, abs=5e-4)
