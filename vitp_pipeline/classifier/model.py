"""ViT-P: a ViT that takes points as extra tokens and classifies them all in one forward (paper §3.3).

    tokens = [point 1 … point N; registers; patches]  →  blocks  →  norm  →  head on the first N

Backbones with rotary positions (`timm.models.eva`) keep their class token, before the registers; a point is
rotated by its own position, between those of the patches (`rotary`).

Two choices go beyond the paper; the defaults are the paper's.

`point_token` selects the initial token of a point:
    linear    the paper's token: Linear(coordinates) + the CLS slot of the position embedding; it has to learn where a
              coordinate lies, which takes long training. Where the position embedding has no such slot (no class token,
              or one without a position, as in DINOv2 with registers) the slot is a parameter of its own, `point_slot`
    patch     the patch embeddings and positions around the point, bilinearly mixed, plus Linear(coordinates), zero at
              first: the token passes through the pre-trained blocks as a patch would
    rotary    a content vector that is learned, `point_slot`, placed as a patch would be: turned to the point's place by
              rotary positions, and with the position table of its place where there is one; plus Linear(coordinates),
              zero at first
    sampled   no token at all: the patches pass alone, and a point reads them where it lies, bilinearly mixed; the same
              as carrying copies of its four neighboring patches as read-only tokens and mixing them at the end

`attention`: with "full" all tokens see each other. With "read-only" every token sees the patches and none sees a point:
the image's features are the pre-trained ones, and a point's scores do not depend on the other points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from vitp_pipeline.classifier.backbones.create import create_vit
from vitp_pipeline.classifier.backbones.kinds import Vit, patch_of
from vitp_pipeline.classifier.backbones.rotary import rotations
from vitp_pipeline.classifier.backbones.tokens import (
    has_class_row,
    keeps_class_token,
    kept_tokens,
    patch_positions,
    sample_tokens,
)
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import Size


class PointViT(nn.Module):
    """ViT-P. Call it as `model(images, points)`.

    Raises:
        UsageError: the backbone is not a timm ViT, or the image size does not fit its patches.
    """

    backbone: Vit
    point_layer: CoordinateLayer | nn.Identity
    point_slot: nn.Parameter | None
    head: nn.Sequential | nn.Linear
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.frozen = config, False
        self.classes, self.image_size = config.classes, config.image_size
        self.backbone, self.grid = _make_backbone(config)
        blocks = len(self.backbone.blocks)
        self.depth = config.depth or blocks
        self.feature_layers = config.feature_layers or (self.depth,)
        if not (1 <= self.depth <= blocks and all(1 <= layer <= self.depth for layer in self.feature_layers)):
            raise UsageError(
                f"{config.backbone} has {blocks} blocks; depth {config.depth} or feature_layers "
                f"{config.feature_layers} ask for others"
            )
        self.backbone.blocks = self.backbone.blocks[: self.depth]
        width, count = self.backbone.embed_dim, len(config.classes)
        sampled = config.point_token == "sampled"
        self.point_layer = nn.Identity() if sampled else CoordinateLayer(config.point_dim, width)
        own_slot = config.point_token == "rotary" or (
            config.point_token == "linear" and not has_class_row(self.backbone)
        )
        self.register_parameter("point_slot", nn.Parameter(torch.zeros(width)) if own_slot else None)
        features = width * len(self.feature_layers)
        if len(self.feature_layers) > 1 or config.norm != "layer":
            self.backbone.norm = nn.Identity()  # see `_feature_norm`
        self.head_norm: nn.Module = nn.Identity()
        if config.norm == "batch":
            self.head_norm = nn.BatchNorm1d(features)
        elif config.norm == "layer" and len(self.feature_layers) > 1:
            self.head_norm = nn.LayerNorm(features, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        if config.head == "mlp":
            self.head = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, count))
        else:
            self.head = nn.Linear(features, count)
        self._initialize()
        said: Any = getattr(self.backbone, "pretrained_cfg", None) or {}
        mean, std = said.get("mean") or IMAGENET_DEFAULT_MEAN, said.get("std") or IMAGENET_DEFAULT_STD
        for name, values in (("mean", mean), ("std", std)):
            # of the configuration, no weights: they have values also where a model without memory is made
            own = torch.tensor(values, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, own, persistent=False)

    def _initialize(self) -> None:
        """Initialize point layer and head as `dinov2/models/vision_transformer.py` does: truncated normal, 0.02.

        Zero where the layer only corrects.
        """
        if isinstance(self.point_layer, CoordinateLayer):
            nn.init.zeros_(self.point_layer.weight)
            if self.config.point_token == "linear":
                nn.init.trunc_normal_(self.point_layer.weight, std=0.02)
        if self.point_slot is not None:
            # not zero: the first norm of the blocks would take a token's length away, and with it how far from the
            # image's center the point lies
            nn.init.trunc_normal_(self.point_slot, std=0.02)
        for module in self.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def freeze(self) -> None:
        """Only the head learns from now on: backbone and point layer stay as they are."""
        self.frozen = True
        for module in (self.backbone, self.point_layer):
            module.requires_grad_(False)

    def freeze_points(self) -> None:
        """Only the initial tokens of points stay as they are."""
        self.point_layer.requires_grad_(False)
        if self.point_slot is not None:
            self.point_slot.requires_grad_(False)

    def train(self, mode: bool = True) -> PointViT:
        """Set the mode as in torch, but keep a frozen backbone in eval mode (no drop-path)."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB, uint8 or float in [0, 255], to the floats that the backbone was trained with."""
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, images: Tensor, points: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scores of points.

        Args:
            images: (B, 3, H, W) float, normalized (`normalize`), H, W = `image_size`.
            points: (B, N, 2) or (B, N, 4) float: (row, col[, height, width]), row and col in [−1, 1]
            (`normalize_points`).
            valid: (B, N) bool; False marks padding, which no real token sees. None = all are real.
        Returns:
            (B, N, K) logits.
        """
        return self.logits(self.features(images, points, valid), valid)

    def logits(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Score the head's input, (B, N, F·D); `valid` and result as of `forward`."""
        if isinstance(self.head_norm, nn.BatchNorm1d):
            if valid is not None and self.training:  # padding is no part of the statistics
                normed = torch.zeros_like(features)
                normed[valid] = self.head_norm(features[valid]).to(features.dtype)
                features = normed
            else:
                features = self.head_norm(features.flatten(0, 1)).view_as(features)
        else:
            features = self.head_norm(features)
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def features(self, images: Tensor, points: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the head's input, (B, N, F·D); arguments as `forward`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.config.point_token == "sampled":
                return self.read_patches(self.patch_features(images), points)
            found = []
            for number, ends in enumerate(self.passed(images, points, valid), 1):
                if number in self.feature_layers:
                    found.append(self._feature_norm(ends[:, : points.shape[1]]))
            return torch.cat(found, dim=-1)

    def passed(self, images: Tensor, points: Tensor | None, valid: Tensor | None = None) -> Iterator[Tensor]:
        """Yield all tokens (B, T, D) behind each block: points', unless they are sampled, others, patches'.

        Arguments as `forward`; sampled points are not looked at. What is not taken from the iterator is not computed.
        """
        own = None if self.config.point_token == "sampled" else points
        tokens = self._tokens(images, own)
        if own is None:
            yield from self._passed(tokens, None, None)
            return
        mask = self._attention_mask(tokens.shape[1], own.shape[1], valid, tokens.device)
        yield from self._passed(tokens, mask, own[..., :2])

    def patches_of(self, tokens: Tensor) -> Tensor:
        """(B, T, D) of `passed` to those of the patches, (B, P, D)."""
        return tokens[:, -math.prod(self.grid) :]

    def patch_features(self, images: Tensor) -> list[Tensor]:
        """Compute what points with `point_token = "sampled"` read: the patches behind each of the feature layers.

        Args:
            images: as of `forward`.
        Returns:
            F tensors (B, P, D), before any norm, the patches in row-major order.
        """
        passed = enumerate(self.passed(images, None), 1)
        return [self.patches_of(tokens) for number, tokens in passed if number in self.feature_layers]

    def read_patches(self, patches: Sequence[Tensor], points: Tensor) -> Tensor:
        """Read points from the patches.

        Args:
            patches: as `patch_features` returns them.
            points: as of `forward`.
        Returns:
            (B, N, F·D), the head's input.
        """
        read = (sample_tokens(layer, self.grid, points[..., :2]) for layer in patches)
        return torch.cat([self._feature_norm(tokens) for tokens in read], dim=-1)

    def _tokens(self, images: Tensor, points: Tensor | None) -> Tensor:
        """(B, T, D): the points', if there are any; those of `kept_tokens`; the patches'."""
        vit = self.backbone
        patches, table = self._patches(images)
        own = [] if points is None else [self._point_tokens(points, patches, table)]
        kept = kept_tokens(vit, images.shape[0], keeps_class_token(vit))
        tokens: Tensor = vit.norm_pre(torch.cat([*own, *kept, patches], dim=1))
        return tokens

    def _patches(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, P, D) patch tokens with their positions, and (1, P, D) the positions, if there is a table of them."""
        table = patch_positions(self.backbone, self.grid, self.config.pos_embed == "offset")
        patches = self.backbone.patch_embed(images)
        return (patches if table is None else self.backbone.pos_drop(patches + table)), table

    def _passed(self, tokens: Tensor, mask: Tensor | None, points: Tensor | None) -> Iterator[Tensor]:
        """Pass tokens [points; tokens without a place; patches] through the blocks, and yield them behind each one.

        Args:
            tokens: (B, T, D).
            mask: as `_attention_mask`.
            points: (B, N, 2), the places of the first N tokens; None = N is 0.
        """
        options = {} if mask is None else {"attn_mask": mask}
        turns: Iterator[Tensor | None] = repeat(None)
        if (rope := getattr(self.backbone, "rope", None)) is not None:
            placed = math.prod(self.grid) + (0 if points is None else points.shape[1])
            turns = rotations(rope, self.grid, points, tokens.shape[1] - placed)
        for block, turn in zip(self.backbone.blocks, turns, strict=False):
            tokens = block(tokens, **options) if turn is None else block(tokens, rope=turn, **options)
            yield tokens

    def _feature_norm(self, tokens: Tensor) -> Tensor:
        """The pre-trained norm belongs to one block's tokens; where it is not used, every layer is put on one scale."""
        if isinstance(self.backbone.norm, nn.Identity):
            return F.layer_norm(tokens, tokens.shape[-1:])
        normed: Tensor = self.backbone.norm(tokens)
        return normed

    def _point_tokens(self, points: Tensor, patches: Tensor, table: Tensor | None) -> Tensor:
        """(B, N, D) tokens that points start from; `patches` (B, P, D) with their positions, `table` (1, P, D)."""
        kind, places = self.config.point_token, points[..., :2]
        token: Tensor = self.point_layer(F.pad(points, (0, self.config.point_dim - points.shape[2])))
        if kind == "patch":
            token = token + sample_tokens(patches, self.grid, places)
        elif self.point_slot is not None:
            token = token + self.point_slot
        elif self.backbone.pos_embed is not None:
            token = token + self.backbone.pos_embed[:, :1]  # the CLS slot, the same for all points
        if kind == "rotary" and table is not None:
            token = token + sample_tokens(table.expand(patches.shape[0], -1, -1), self.grid, places)
        return token.to(next(self.backbone.parameters()).dtype)  # under autocast that is float32: rounded by no one

    def _attention_mask(self, total: int, count: int, valid: Tensor | None, device: torch.device) -> Tensor | None:
        """(B or 1, 1, 1, T) bool, True for the tokens that are seen, by all alike; None when everything is."""
        if self.config.attention == "read-only":
            return (torch.arange(total, device=device) >= count)[None, None, None]
        if valid is None:
            return None
        return F.pad(valid, (0, total - count), value=True)[:, None, None]


class CoordinateLayer(nn.Linear):
    """Linear(coordinates), in float32 independent of the model's dtype.

    Neighboring pixels of an image of 2048 columns differ by 2⁻¹⁰, and numbers near 1 are 2⁻⁸ apart in bfloat16. So
    neither autocast nor `model.to(bfloat16)` nor `model.half()` reaches it.
    """

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__(numbers, width, bias=False)

    def forward(self, points: Tensor) -> Tensor:
        """(..., numbers) of any float type to (..., width) float32 (float64 if the layer is)."""
        device = points.device.type  # the meta device has no autocast
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return F.linear(points.to(self.weight.dtype), self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CoordinateLayer:
        """Follow `to`, `half`, `cuda` … to another device, but not to fewer bits."""

        def kept(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype.itemsize >= tensor.dtype.itemsize else tensor.to(new.device)

        nn.Linear._apply(self, kept, recurse)
        return self


def _make_backbone(config: ModelConfig) -> tuple[Vit, Size]:
    """Make the backbone and its grid (rows, columns) for the model's image size."""
    offset = config.pos_embed == "offset"
    size = (518, 518) if offset else config.image_size
    vit = create_vit(config.backbone, size, config.backbone_args, config.drop_path)
    if offset and (getattr(vit, "rope", None) is not None or vit.pos_embed is None):
        raise UsageError(f'pos_embed = "offset" belongs to released weights, and {config.backbone} to none of them')
    patch = patch_of(vit)
    if any(side % p for side, p in zip(config.image_size, patch, strict=True)):
        near = [max(1, round(side / p)) * p for side, p in zip(config.image_size, patch, strict=True)]
        raise UsageError(
            f"image_size {config.image_size} is not a multiple of {patch}, the patch of {config.backbone}",
            f"Use {near}",
        )
    vit.patch_embed.strict_img_size = not offset
    return vit, (config.image_size[0] // patch[0], config.image_size[1] // patch[1])
