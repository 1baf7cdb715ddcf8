"""Teach point tokens where their coordinates lie, without labels.

The token of `point_token = "linear"` (paper §3.3) is a function of the coordinates alone, so the blocks have to learn
from class labels that it should gather what lies there. But the pre-trained backbone already knows what each place
looks like. Here a token learns to leave the blocks with the features that the frozen backbone has at its point,
bilinearly mixed from the patches around it (`point_token = "sampled"`): every point of every image teaches all
numbers of a feature, where a label teaches one.

The point layer starts as the best linear approximation of the position table, so that a point begins near the tokens of
its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitp_pipeline.classifier.backbones.tokens import has_class_row, prefix_rows, sample_tokens
from vitp_pipeline.classifier.model import CoordinateLayer, PointViT
from vitp_pipeline.classifier.training.data import Batch, PointBatches
from vitp_pipeline.classifier.training.loop import Trainer
from vitp_pipeline.errors import InputError
from vitp_pipeline.runtime.devices import mixed_precision


@dataclass
class Localizer(Trainer):
    """Trains point layer and blocks so that a point's features are the frozen backbone's at its place.

    The classes and labels of the batches are not used. The head becomes zero: a localized model names nothing until it
    is trained further (`init_from`).

    Args:
        model: with point tokens; its weights at this moment are the teacher's.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teacher = frozen_teacher(self.model).to(self.device)
        if not self.settings.init_from:
            start_at_positions(self.model)
        if self.settings.localize_blocks:
            self.model.backbone.blocks[self.settings.localize_blocks :].requires_grad_(False)
            self.model.backbone.norm.requires_grad_(False)
        for module in self.model.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)

    def _summed_loss(self, batch: Batch) -> Tensor:
        """Sum over points of the mean squared difference to the teacher's features."""
        images = self.model.normalize(batch.images.to(self.device))
        points = batch.points.to(self.device)
        with mixed_precision(self.settings.precision, self.device):
            if self.settings.localize_blocks:
                return self._difference_behind(self.settings.localize_blocks, images, points)
            with torch.no_grad():
                wanted = self.teacher.features(images, points).float()
            found = self.model.features(images, points).float()
        return F.mse_loss(found, wanted, reduction="none").mean(-1).sum()

    def _difference_behind(self, block: int, images: Tensor, points: Tensor) -> Tensor:
        """Sum over points of the difference behind a block, plus that of the patches, which stay as they are.

        The blocks behind it are the teacher's own. A point that looks like the patches around it passes through them
        as a patch does, and as long as the patches look as they did.
        """
        with torch.no_grad():
            patches = self.teacher.patches_of(_nth(self.teacher.passed(images, points), block))
            wanted = sample_tokens(patches, self.teacher.grid, points[..., :2])
        tokens = _nth(self.model.passed(images, points), block)
        of_points = _difference(tokens[:, : points.shape[1]], wanted)
        of_patches = _difference(self.model.patches_of(tokens), patches)
        return of_points.sum() + points.shape[1] * of_patches.mean(1).sum()


def _nth(tokens: Iterator[Tensor], number: int) -> Tensor:
    return next(islice(tokens, number - 1, None))


def _difference(found: Tensor, wanted: Tensor) -> Tensor:
    """(B, T): mean squared difference of tokens on the scale that the next block sees."""
    found, wanted = (F.layer_norm(tokens.float(), tokens.shape[-1:]) for tokens in (found, wanted))
    return F.mse_loss(found, wanted, reduction="none").mean(-1)


class PlaceBatches(PointBatches):
    """Batches of images with points drawn evenly over each image; no labels are read."""

    def _item(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        sample = self.samples[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            image = self.dataset.read_image(sample)
        except InputError as error:
            self.skipped[sample.image_id] = error.message
            return None
        change = self.augmentation.draw((image.shape[0], image.shape[1]), rng)
        points = rng.uniform(-1, 1, (self.points, 2)).astype(np.float32)
        return change.picture(image, self.image_size), points, np.zeros(self.points, np.int64)


def frozen_teacher(model: PointViT) -> PointViT:
    """Copy a model into one that reads the patch features at the points, and never learns."""
    teacher = PointViT(replace(model.config, point_token="sampled"))
    teacher.backbone.load_state_dict(model.backbone.state_dict())
    return teacher.requires_grad_(False).eval()


@torch.no_grad()
def start_at_positions(model: PointViT) -> None:
    """Set a `linear` point token to the least-squares fit of the position table over the patches' centers.

    The other tokens have their place already, and a backbone without a table has none to fit: they stay as they are.
    """
    vit, layer = model.backbone, model.point_layer
    if model.config.point_token != "linear" or vit.pos_embed is None or not isinstance(layer, CoordinateLayer):
        return
    rows, cols = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1 for side in model.grid)
    places = torch.cartesian_prod(rows, cols)
    table = vit.pos_embed[0, prefix_rows(vit) :].double().cpu()
    solution = torch.linalg.lstsq(F.pad(places, (0, 1), value=1.0), table).solution
    layer.weight.zero_()
    layer.weight[:, :2] = solution[:2].T.to(layer.weight)
    if has_class_row(vit):
        vit.pos_embed[0, 0] = solution[2].to(vit.pos_embed)
    elif model.point_slot is not None:
        model.point_slot.copy_(solution[2])
