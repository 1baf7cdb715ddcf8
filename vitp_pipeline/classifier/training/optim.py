"""Optimizer, parameter groups and learning-rate schedule of a training."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.config.settings import TrainSettings


def parameter_groups(model: PointViT, settings: TrainSettings) -> list[dict[str, Any]]:
    """Give the head `lr`, the point layer `point_lr` and the backbone `backbone_lr`; a rate of 0 freezes the last two.

    Biases, norms and scales do not decay. The authors' code has 0.01 for the point layer, whatever the rate of the rest
    (`dinov2/train/train.py`).
    """
    backbone_lr, point_lr = (settings.lr if lr < 0 else lr for lr in (settings.backbone_lr, settings.point_lr))
    if backbone_lr == 0:
        model.freeze()
    undecayed = {"backbone." + name for name in model.backbone.no_weight_decay()}
    if settings.point_lr == 0:
        model.freeze_points()
    own = {"backbone": backbone_lr, "point_layer": point_lr, "point_slot": point_lr}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = own.get(name.split(".")[0], settings.lr)
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
    warmup = round(settings.warmup * steps) if settings.warmup_steps < 0 else settings.warmup_steps
    return CosineLRScheduler(
        optimizer, t_initial=max(1, steps - warmup), warmup_t=warmup, warmup_prefix=True, t_in_epochs=False
    )
