"""Training of the point classifier: one loop, resumable, the same bytes whether it was interrupted or not.

A step takes `batch_size`·`accumulate` images, in pieces that fit into memory, shared among the processes. The
loss is summed over all points of a step and divided by their number, so neither pieces nor processes change it.
What they do change: a head norm "batch" has its statistics from the points of one piece, and the running ones from the
pieces of process 0; dropout and drop-path draw by piece.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitp_pipeline.classifier.features.patch_features import head_inputs
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
from vitp_pipeline.classifier.training.data import Batch, PointBatches
from vitp_pipeline.classifier.training.optim import (
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.errors import UserError
from vitp_pipeline.runtime.devices import mixed_precision
from vitp_pipeline.runtime.distributed import ALONE, Distributed
from vitp_pipeline.runtime.progress import progress
from vitp_pipeline.runtime.signals import stop_wanted, stopped

BEST_BY = "held_out_class_accuracy"
"""Figure that selects `best`; the first of equals."""


@dataclass
class Trainer:
    """Trains a model on batches and keeps its state in a folder.

    Args:
        batches: of `batch_size`·`accumulate` images, or this process's part of them.
        log_prior: (K,) log class frequencies among training points, times `class_prior`; added to the logits
        in the loss only.
        evaluate: function from the model to figures for metrics.jsonl, run at the end of an epoch.
        distributed: all its processes make a Trainer and run it; process 0 writes.
    """

    model: PointViT
    batches: PointBatches
    settings: TrainSettings
    folder: TrainingFolder
    device: torch.device
    log_prior: Tensor | None = None
    evaluate: Callable[[PointViT], dict[str, float]] | None = None
    distributed: Distributed = ALONE

    def __post_init__(self) -> None:
        self.best = float("-inf")
        self._forward: Callable[..., Tensor] = self.model

    def run(self) -> None:
        """Train from the last checkpoint, or from the start, to the end; leaves the model with the last weights
        and the best in best.safetensors.

        Raises:
            UserError: the loss stopped being finite, or torch.compile finds no working compiler.
            UnreadableError: too many images cannot be read.
            StoppedError: a signal asked one of the processes to end; all have gone into a checkpoint.
            StorageError: disk full; the last checkpoint stays good.
        """
        settings, per_epoch = self.settings, self.batches.steps_per_epoch
        steps = settings.total_steps(per_epoch)
        self.model.to(self.device)
        optimizer = make_optimizer(parameter_groups(self.model, settings), settings)
        schedule = make_schedule(optimizer, settings, steps)
        half = settings.precision == "float16" and self.device.type == "cuda"
        scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        first, losses = self._resume(optimizer, scaler)
        if settings.checkpointing:
            for block in self.model.backbone.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if settings.compile:
            self._forward = torch.compile(self.model)
        saved = time.monotonic()
        with progress("train", steps, "steps", self.distributed.is_main_process) as bar:
            bar.advance(first)
            for step, batch in self.batches.from_step(first, steps):
                self.batches.require_readable()
                schedule.step_update(step)
                if (loss := self._step(step, batch, optimizer, scaler)) is not None:
                    losses.append(loss)
                bar.advance(1, f"loss {losses[-1]:.3f}" if losses else "")
                if (step + 1) % per_epoch == 0 or step + 1 == steps:
                    self._log(step + 1, -(-(step + 1) // per_epoch), losses, optimizer)
                    losses = []
                due = self.distributed.is_main_process and time.monotonic() - saved > 60 * settings.checkpoint_minutes
                due, stop = self.distributed.add(np.array([due, stop_wanted()], np.int64))
                if step + 1 < steps and (due or stop):
                    self._save(step + 1, losses, optimizer, scaler)
                    saved = time.monotonic()
                    if stop:
                        raise stopped(f"{step + 1} of {steps} steps are done and saved")
        self.model.eval()

    def _step(
        self, step: int, batch: Batch | None, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> float | None:
        """One optimizer step on the batches of all processes; its loss, or None when none of them has a point."""
        pieces = list(_pieces(batch, -(-self.settings.batch_size // self.distributed.size)))
        own = sum(int((piece.classes != IGNORE).sum()) for piece in pieces)
        points = int(self.distributed.add(np.array([own]))[0])
        if not points:
            return None
        self.model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for number, piece in enumerate(pieces, self.distributed.rank * self.settings.accumulate):
            # dropout and drop-path: a function of the step, and of the piece
            torch.manual_seed(self.settings.seed * 1_000_003 + step + (number << 40))
            share = self._summed_loss(piece) / points
            scaler.scale(share).backward()
            loss += share.item()
        loss = float(self.distributed.add(np.array([loss]))[0])
        if not np.isfinite(loss):
            raise UserError(f"training: the loss is {loss} at step {step}", "Lower `lr`, or use float32")
        learning = [p for g in optimizer.param_groups for p in g["params"]]
        self.distributed.add_gradients(learning)
        scaler.unscale_(optimizer)
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_(learning, self.settings.clip)
        scaler.step(optimizer)
        scaler.update()
        return loss

    def _summed_loss(self, batch: Batch) -> Tensor:
        points, classes = batch.points.to(self.device), batch.classes.to(self.device)
        try:
            with mixed_precision(self.settings.precision, self.device):
                logits = self._logits(batch.images.to(self.device), points).float()
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise UserError(f"compile = true: torch.compile fails ({reason})", "Set compile = false") from error
        if self.log_prior is not None:
            logits = logits + self.log_prior.to(self.device)
        return F.cross_entropy(
            logits.flatten(0, 1),
            classes.flatten(),
            ignore_index=IGNORE,
            reduction="sum",
        )

    def _logits(self, images: Tensor, points: Tensor) -> Tensor:
        """Compute (B, N, K) logits from the images and points of a batch."""
        return self._forward(self.model.normalize(images), points)

    def _save(
        self, step: int, losses: list[float], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.distributed.merge(self.batches.skipped)
        if self.distributed.is_main_process:
            self.folder.save(
                {
                    "step": step,
                    "losses": losses,  # of the epoch so far
                    "best": self.best,
                    "model": self.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "skipped": dict(self.batches.skipped),  # reading threads may add to the original
                }
            )
        self.distributed.wait_for_main_process()

    def _resume(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> tuple[int, list[float]]:
        step, losses = 0, []
        if (state := self.folder.load()) is not None:
            try:
                self.model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
                scaler.load_state_dict(state["scaler"])
                self.batches.skipped.update(state["skipped"])
                step, losses, self.best = int(state["step"]), list(state["losses"]), state.get("best", self.best)
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise self.folder.damaged(error) from error
        if self.distributed.is_main_process and not self.folder.is_whole(
            "best"
        ):  # killed between its two files: use the next epoch's
            self.best = float("-inf")
        self.folder.require_shared(self.distributed, step)
        if self.distributed.is_main_process:
            self.folder.write_log()
        return step, losses

    def _log(self, step: int, epoch: int, losses: list[float], optimizer: torch.optim.Optimizer) -> None:
        line: dict[str, Any] = {
            "step": step,
            "epoch": epoch,
            "loss": float(np.mean(losses)) if losses else None,
            "lr": max(group["lr"] for group in optimizer.param_groups),
        }
        if self.evaluate is not None:
            self.model.eval()
            line |= self.evaluate(self.model)
            if line.get(BEST_BY, float("-inf")) > self.best:
                self.best = line[BEST_BY]
                if self.distributed.is_main_process:
                    self.folder.save_model(self.model, "best", {"step": step, "epoch": epoch, BEST_BY: self.best})
        if self.distributed.is_main_process:
            self.folder.log(line)


class HeadTrainer(Trainer):
    """Trains the head on the features of a frozen backbone: the counterpart of `Trainer` for `FeatureBatches`."""

    def _logits(self, images: Tensor, points: Tensor) -> Tensor:
        with torch.no_grad():
            features = head_inputs(self.model, images, points)
        return self.model.logits(features)


def _pieces(batch: Batch | None, size: int) -> Iterator[Batch]:
    """A batch in pieces of at most `size` images; none of no batch."""
    if batch is None:
        return
    for start in range(0, len(batch.images), size):
        columns = (getattr(batch, field.name) for field in dataclasses.fields(batch))
        yield type(batch)(*(c[start : start + size] for c in columns))
