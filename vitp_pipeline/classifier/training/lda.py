"""A linear head in closed form: linear discriminant analysis of the frozen backbone's features.

With few images and many classes it classifies points better than the same head trained by gradient: the features of a
ViT are strongly correlated, and a short gradient descent does not learn to divide by their within-class covariance.
Points of one class in one image are nearly one observation, so together they weigh as much as those of any other class
in any other image. For the same reason the probabilities are overconfident. They are not recalibrated: only the
predicted class matters, and probability spread over many classes adds noise to the semantic map.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import nn

from vitp_pipeline.classifier.features.patch_features import head_inputs
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
from vitp_pipeline.classifier.training.data import Batch, PointBatches
from vitp_pipeline.classifier.training.feature_data import FeatureBatches
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.errors import UsageError, UserError
from vitp_pipeline.runtime.devices import mixed_precision
from vitp_pipeline.runtime.distributed import ALONE, Distributed
from vitp_pipeline.runtime.progress import progress
from vitp_pipeline.runtime.signals import stop_wanted, stopped


class LdaStatistics:
    """Sums over training points that determine the head; float64, so that the order of points hardly matters.

    Args:
        classes: K.
        width: D, numbers per feature.
    """

    def __init__(self, classes: int, width: int) -> None:
        self.count = np.zeros(classes)
        self.sum = np.zeros((classes, width))
        self.square = np.zeros((width, width), order="F")  # of this symmetric matrix the upper half alone is kept

    def update(self, features: np.ndarray, classes: np.ndarray) -> None:
        """Add the points of B images at once: features (B, N, D) float, classes (B, N) integers in [0, K)."""
        kinds = len(self.count)
        each = classes + kinds * np.arange(len(classes))[:, None]
        points = np.bincount(each.ravel(), minlength=kinds * len(classes))
        weight = (1.0 / points[each]).ravel()
        labels, rows = classes.ravel(), features.reshape(-1, features.shape[-1]).astype(np.float64)
        np.add.at(self.count, labels, weight)
        shares = np.zeros((kinds, len(labels)))
        shares[labels, np.arange(len(labels))] = weight
        self.sum += shares @ rows
        # half the work of a matrix product, and added in place, which is the cheaper the more points there are
        rows *= np.sqrt(weight)[:, None]
        self.square = dsyrk(1.0, rows.T, beta=1.0, c=np.asfortranarray(self.square), overwrite_c=True)

    def of_all(self, distributed: Distributed) -> LdaStatistics:
        """The sums over the points of all processes."""
        total = LdaStatistics(*self.sum.shape)
        for name in ("count", "sum", "square"):
            setattr(total, name, distributed.add(getattr(self, name)))
        return total

    def head(self, shrinkage: float, class_prior: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute the head: logits = features @ weight.T + bias.

        Args:
            shrinkage: λ: the covariance within the classes gets λ times the features' overall variances added to its
                diagonal.
            class_prior: how much of log(class frequency) to leave out: 0 = all of it counts, 1 = classes count alike.
        Returns:
            weight (K, D) and bias (K,) float32. A class without points has weight 0 and the lowest bias of all.
        Raises:
            UserError: no points, or features that do not vary without shrinkage.
        """
        total = self.count.sum()
        if not total:
            raise UserError("training: no point to learn from")
        seen = self.count > 0
        mean = self.sum.sum(0) / total
        means = self.sum / np.maximum(self.count, 1)[:, None]
        square = np.triu(self.square) + np.triu(self.square, 1).T
        overall = square / total - np.outer(mean, mean)
        between = (means - mean)[seen].T @ ((means - mean)[seen] * (self.count[seen] / total)[:, None])
        within = overall - between + shrinkage * np.diag(np.maximum(np.diag(overall), 1e-8))
        centered = (means - mean) * seen[:, None]
        try:
            weight = np.linalg.solve(within, centered.T).T
        except np.linalg.LinAlgError as error:
            raise UserError("training: the features' covariance is singular", "Use a larger `shrinkage`") from error
        bias = -0.5 * (weight * centered).sum(1) - weight @ mean
        bias[seen] += (1 - class_prior) * np.log(self.count[seen] / total)
        bias[~seen] = bias[seen].min()
        return weight.astype(np.float32), bias.astype(np.float32)


@dataclass
class LdaTrainer:
    """Fits the head of a frozen model; the counterpart of `Trainer` for `fit = "lda"`.

    Raises:
        UsageError: the head is not linear, or its norm has to be learned.
    """

    model: PointViT
    batches: PointBatches
    settings: TrainSettings
    folder: TrainingFolder
    device: torch.device
    evaluate: Callable[[PointViT], dict[str, float]] | None = None
    distributed: Distributed = ALONE

    def __post_init__(self) -> None:
        config, head = self.model.config, self.model.head
        if not isinstance(head, nn.Linear) or config.norm != "none":
            raise UsageError('fit = "lda" needs head = "linear" and norm = "none": it brings its own scaling')
        self.head = head

    def run(self) -> None:
        """Gathers statistics from the last checkpoint, or from the start, then sets the head.

        Raises:
            UserError: no usable point.
            StoppedError: a signal asked one of the processes to end; all have gone into a checkpoint.
            StorageError: disk full; the last checkpoint stays good.
        """
        settings = self.settings
        self.model.freeze()
        self.model.to(self.device).eval()
        statistics = LdaStatistics(self.head.out_features, self.head.in_features)
        steps = settings.total_steps(self.batches.steps_per_epoch)
        first, saved = self._resume(statistics), time.monotonic()
        with progress("train", steps, "steps", self.distributed.is_main_process) as bar:
            bar.advance(first)
            for step, batch in self.batches.from_step(first, steps):
                self.batches.require_readable()
                if batch is not None:
                    statistics.update(self._features(batch), batch.classes.numpy())
                bar.advance()
                due = self.distributed.is_main_process and time.monotonic() - saved > 60 * settings.checkpoint_minutes
                due, stop = self.distributed.add(np.array([due, stop_wanted()], np.int64))
                if due or stop:
                    self._save(step + 1, statistics)
                    saved = time.monotonic()
                    if stop and step + 1 < steps:
                        raise stopped(f"{step + 1} of {steps} steps are done and saved")
        weight, bias = statistics.of_all(self.distributed).head(settings.shrinkage, settings.class_prior)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))
        figures = self.evaluate(self.model) if self.evaluate else {}
        if self.distributed.is_main_process:
            self.folder.log({"step": steps, "epoch": -(-steps // self.batches.steps_per_epoch), **figures})

    @torch.inference_mode()
    def _features(self, batch: Batch) -> np.ndarray:
        """(B, N, D) float32."""
        images, points = batch.images.to(self.device), batch.points.to(self.device)
        with mixed_precision(self.settings.precision, self.device):
            if isinstance(self.batches, FeatureBatches):
                features = head_inputs(self.model, images, points)
            else:
                features = self.model.features(self.model.normalize(images), points)
        return features.float().cpu().numpy()

    def _save(self, step: int, statistics: LdaStatistics) -> None:
        self.distributed.merge(self.batches.skipped)
        total = statistics.of_all(self.distributed)
        if self.distributed.is_main_process:
            sums = {name: torch.from_numpy(getattr(total, name)) for name in ("count", "sum", "square")}
            self.folder.save({"step": step, "skipped": dict(self.batches.skipped), **sums})
        self.distributed.wait_for_main_process()

    def _resume(self, statistics: LdaStatistics) -> int:
        step = 0
        if (state := self.folder.load()) is not None:
            try:
                for name in ("count", "sum", "square"):
                    if self.distributed.is_main_process:  # earlier sums count once
                        setattr(statistics, name, state[name].numpy())
                self.batches.skipped.update(state["skipped"])
                step = int(state["step"])
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise self.folder.damaged(error) from error
        self.folder.require_shared(self.distributed, step)
        if self.distributed.is_main_process:
            self.folder.write_log()
        return step
