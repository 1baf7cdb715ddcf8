"""Training of the point classifier: one loop, resumable, the same bytes whether it was interrupted or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitp_pipeline.classifier.data import Batch, PointBatches
from vitp_pipeline.classifier.folder import TrainingFolder
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.devices import mixed_precision
from vitp_pipeline.errors import UserError
from vitp_pipeline.progress import progress
from vitp_pipeline.recipe import TrainSettings


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear from 0 over `warmup` steps, then half a cosine to 0 at `steps` (facts §2.4)."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(model: PointViT, settings: TrainSettings) -> list[dict]:
    """The new layers at `lr`, the pre-trained backbone at `backbone_lr` (0 freezes it); biases, norms, scales
    undecayed.
    """
    backbone_lr = settings.lr if settings.backbone_lr < 0 else settings.backbone_lr
    if backbone_lr == 0:
        model.freeze()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = backbone_lr if name.startswith("backbone.") else settings.lr
        if name.endswith("cls_token"):  # points stand in its place
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        decay = settings.weight_decay if parameter.ndim > 1 and not name.endswith("pos_embed") else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


@dataclass
class Trainer:
    """Trains a model on batches and keeps its state in a folder.

    Args:
        log_prior: (K,) log class frequencies among training points, times `class_prior`; added to the logits
        in the loss only.
        evaluate: called at the end of an epoch with the model, gives figures for metrics.jsonl.
    """

    model: PointViT
    batches: PointBatches
    settings: TrainSettings
    folder: TrainingFolder
    device: torch.device
    log_prior: Tensor | None = None
    evaluate: Callable[[PointViT], dict[str, float]] | None = None

    def run(self) -> None:
        """Trains from the last checkpoint, or from the start, to the end.

        Raises:
            UserError: the loss stopped being finite.
            StorageError: disk full; the last checkpoint stays good.
        """
        settings, per_epoch = self.settings, self.batches.steps_per_epoch
        steps = settings.epochs * per_epoch
        warmup = round(settings.warmup * steps)
        self.model.to(self.device)
        groups = parameter_groups(self.model, settings)
        if settings.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups)
        else:
            optimizer = torch.optim.SGD(groups, momentum=0.9)
        half = settings.precision == "float16" and self.device.type == "cuda"
        scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        first, losses = self._resume(optimizer, scaler)
        saved = time.monotonic()
        with progress("train", steps, "steps") as bar:
            bar.advance(first)
            for step, batch in self.batches.from_step(first, steps):
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * learning_rate_factor(step, steps, warmup)
                if batch is not None:
                    losses.append(self._step(step, batch, optimizer, scaler))
                bar.advance(1, f"loss {losses[-1]:.3f}" if losses else "")
                if (step + 1) % per_epoch == 0:
                    self._log(step + 1, (step + 1) // per_epoch, losses, optimizer)
                    losses = []
                if time.monotonic() - saved > 60 * settings.checkpoint_minutes and step + 1 < steps:
                    self._save(step + 1, losses, optimizer, scaler)
                    saved = time.monotonic()
        self.model.eval()

    def _step(self, step: int, batch: Batch, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> float:
        self.model.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # dropout and drop-path: a function of the step
        images = self.model.normalise(batch.images.to(self.device))
        points, classes = batch.points.to(self.device), batch.classes.to(self.device)
        with mixed_precision(self.settings.precision, self.device):
            logits = self.model(images, points)
        logits = logits.float()
        if self.log_prior is not None:
            logits = logits + self.log_prior.to(self.device)
        loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), label_smoothing=self.settings.label_smoothing)
        if not torch.isfinite(loss):
            raise UserError(f"training: the loss is {loss.item()} at step {step}", "Lower `lr`, or use float32")
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self.settings.clip)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    def _save(
        self, step: int, losses: list[float], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.folder.save(
            {
                "step": step,
                "losses": losses,  # of the epoch so far
                "model": self.model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "skipped": dict(self.batches.skipped),  # reading threads may add to the original
            }
        )

    def _resume(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> tuple[int, list[float]]:
        step, losses = 0, []
        if (state := self.folder.load(self.device)) is not None:
            try:
                self.model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
                scaler.load_state_dict(state["scaler"])
                self.batches.skipped.update(state["skipped"])
                step, losses = int(state["step"]), list(state["losses"])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise self.folder.damaged(error) from error
        self.folder.cut_log(step)
        return step, losses

    def _log(self, step: int, epoch: int, losses: list[float], optimizer: torch.optim.Optimizer) -> None:
        line = {
            "step": step,
            "epoch": epoch,
            "loss": float(np.mean(losses)) if losses else None,
            "lr": max(group["lr"] for group in optimizer.param_groups),
        }
        if self.evaluate is not None:
            self.model.eval()
            line |= self.evaluate(self.model)
        self.folder.log(line)
