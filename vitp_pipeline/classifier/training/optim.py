"""How the weights follow their gradients: rates, parameter groups, and the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.config.settings import TrainSettings


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear from 0 over `warmup` steps, then half a cosine to 0 at `steps` (facts §2.4)."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warmup_steps(settings: TrainSettings, steps: int) -> int:
    """`warmup_steps`, or else `warmup` as a share of all steps."""
    return settings.warmup_steps or round(settings.warmup * steps)


def parameter_groups(model: PointViT, settings: TrainSettings) -> list[dict]:
    """The new layers at `lr`, the pre-trained backbone at `backbone_lr` (0 freezes it), times `layer_decay` for every
    layer above; biases, norms, scales undecayed.
    """
    backbone_lr = settings.lr if settings.backbone_lr < 0 else settings.backbone_lr
    if backbone_lr == 0:
        model.freeze()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = settings.lr
        if name.startswith("backbone."):
            lr = backbone_lr * settings.layer_decay ** layers_above(name.removeprefix("backbone."), model.depth)
        if name.endswith("cls_token"):  # points stand in its place
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        decay = settings.weight_decay if parameter.ndim > 1 and not name.endswith("pos_embed") else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def layers_above(name: str, depth: int) -> int:
    """How many layers lie above a backbone parameter, the head counting as one: the last of `depth` blocks, and the
    norm behind it, have 1, the embeddings depth + 1 (as in BEiT and timm).
    """
    if name.startswith("blocks."):
        return depth - int(name.split(".")[1])
    return 1 if name.startswith("norm.") else depth + 1


def make_optimizer(groups: list[dict], settings: TrainSettings) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 (facts §2.4), or AdamW."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=0.9)


class AveragedWeights:
    """An exponential moving average of a model's weights.

    After t steps the decay is min(`decay`, (1 + t)/(10 + t)): the random beginning is soon forgotten. Counts and other
    integers are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.mean: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimiser step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - decay)
            else:
                self.mean[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights while the block runs."""
        own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean)
        try:
            yield
        finally:
            self.model.load_state_dict(own)
