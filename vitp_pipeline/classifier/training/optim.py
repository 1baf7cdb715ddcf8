"""Optimizer, parameter groups and learning-rate schedule of a training."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.config.settings import TrainSettings


def parameter_groups(model: PointViT, settings: TrainSettings) -> list[dict[str, Any]]:
    """Give the new layers `lr` and the backbone `backbone_lr` (0 freezes it); biases, norms and scales do not decay."""
    backbone_lr = settings.lr if settings.backbone_lr < 0 else settings.backbone_lr
    if backbone_lr == 0:
        model.freeze()
    undecayed = {"backbone." + name for name in model.backbone.no_weight_decay()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = backbone_lr if name.startswith("backbone.") else settings.lr
        if not parameter.requires_grad:
            continue
        decay = settings.weight_decay if parameter.ndim > 1 and name not in undecayed else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def make_optimizer(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    """Build SGD with momentum 0.9, the paper's, or AdamW."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=0.9)


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> CosineLRScheduler:
    """Raise every rate linearly from 0 in the warm-up, then lower it by half a cosine to 0 at the last of `steps`."""
    warmup = settings.warmup_steps or round(settings.warmup * steps)
    return CosineLRScheduler(
        optimizer, t_initial=max(1, steps - warmup), warmup_t=warmup, warmup_prefix=True, t_in_epochs=False
    )
