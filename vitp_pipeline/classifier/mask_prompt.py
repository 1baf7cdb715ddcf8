"""Mask prompting, the comparison of the paper's Table 6 and §7: from all patches of a mask, not from a point.

A mask token starts as a copy of the class token and, in every layer that it passes, sees itself and the patches inside
its mask: those covered by half or more, or the most covered one if there is none. No mask token sees another, no patch
sees a mask token, so the image's features are the pre-trained ones. `mask_form` says which layers those are:

    attention   all pre-trained blocks, with their pre-trained weights
    maft        `maft_layers` further blocks behind them that start at random (paper §7), and that the patches pass as
                well. In MAFT (Jiao et al. 2023) the copies are made after 8 of 12 blocks: depth = 8, maft_layers = 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitp_pipeline.classifier.backbones.tokens import kept_tokens
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.errors import UsageError
from vitp_pipeline.runtime.devices import mixed_precision

INSIDE = 0.5
"""Share of a patch that a mask must cover to see it."""


def make_classifier(config: ModelConfig) -> PointViT:
    """The untrained classifier of a configuration. Raises UsageError when it cannot be."""
    return MaskViT(config) if config.prompt == "mask" else PointViT(config)


class MaskViT(PointViT):
    """The same backbone and head as `PointViT`, prompted with masks. Call it as `model(images, coverage)`.

    Args:
        config: with `prompt = "mask"`; `point_token` and `attention` do not matter to it.
    Raises:
        UsageError: the backbone has no class token, positions are not plain; `maft` has no layers or feature_layers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(replace(config, point_token="sampled"))  # the token without a layer for coordinates
        vit = self.backbone
        if vit.cls_token is None:
            raise UsageError(f"{config.backbone} has no class token, from which mask tokens start")
        if config.pos_embed != "plain":
            raise UsageError('prompt = "mask" goes with plain position embeddings, not with those of released weights')
        self.mask_layers = nn.ModuleList()
        if config.mask_form == "maft":
            if config.maft_layers < 1 or config.feature_layers:
                raise UsageError(
                    'mask_form = "maft" needs maft_layers ≥ 1, and no feature_layers: the head reads the last layer'
                )
            heads = getattr(getattr(vit.blocks[0], "attn", None), "num_heads", None)
            if not isinstance(heads, int):
                raise UsageError(f"{config.backbone}: its blocks have no single attention, as maft layers do")
            layers = (Block(vit.embed_dim, heads, qkv_bias=True) for _ in range(config.maft_layers))
            self.mask_layers.extend(layers)
            self.feature_layers = (config.maft_layers,)
            for module in self.mask_layers.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

    def features(self, images: Tensor, points: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the head's input.

        Args:
            images: (B, 3, H, W) float, normalized.
            points: (B, N, P) float in [0, 1], the share of each patch that each mask covers, row-major.
            valid: not needed: no mask's features depend on another's.
        Returns:
            (B, N, F·D).
        """
        inside = patches_inside(points)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self._image_tokens(images)
            if not self.mask_layers:
                tokens, seen = _with_masks(tokens, inside)
                return self._read(self._passed(tokens, seen, None), inside.shape[1])
            for behind in self._passed(tokens, None, None):
                tokens = behind
        tokens, seen = _with_masks(tokens, inside)
        return self._read(_passed_by(self.mask_layers, tokens, seen), inside.shape[1])

    def _image_tokens(self, images: Tensor) -> Tensor:
        """(B, 1 + registers + P, D): the class token, registers and patches, as in pre-training."""
        kept = kept_tokens(self.backbone, images.shape[0], with_class=True)
        tokens: Tensor = self.backbone.norm_pre(torch.cat([*kept, self._patches(images)[0]], dim=1))
        return tokens

    def _read(self, tokens_of_blocks: Iterable[Tensor], count: int) -> Tensor:
        """(B, N, F·D): the first N tokens behind the blocks that the head reads."""
        found = [
            self._feature_norm(t[:, :count])
            for number, t in enumerate(tokens_of_blocks, 1)
            if number in self.feature_layers
        ]
        return torch.cat(found, dim=-1)


def _with_masks(tokens: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Prepend a copy of the first token for each mask, and make the attention mask."""
    seen = attention_of_masks(inside, tokens.shape[1])
    return torch.cat([tokens[:, :1].expand(-1, inside.shape[1], -1), tokens], dim=1), seen


def _passed_by(blocks: nn.ModuleList, tokens: Tensor, seen: Tensor) -> Iterator[Tensor]:
    for block in blocks:
        tokens = block(tokens, attn_mask=seen)
        yield tokens


def patches_inside(coverage: Tensor) -> Tensor:
    """(..., P) shares to bool: the patches covered by half or more, else the most covered one (the first of equals)."""
    inside = coverage >= INSIDE
    best = torch.zeros_like(inside).scatter_(-1, coverage.argmax(-1, keepdim=True), True)
    return torch.where(inside.any(-1, keepdim=True), inside, best)


def attention_of_masks(inside: Tensor, image_tokens: int) -> Tensor:
    """Attention mask of [mask 1 … mask N; image tokens, the patches last].

    Args:
        inside: (B, N, P) bool.
        image_tokens: T − N, at least P.
    Returns:
        (B, 1, T, T) bool, True where the row's token sees the column's.
    """
    count, patches = inside.shape[1:]
    total = count + image_tokens
    seen = torch.ones(len(inside), total, total, dtype=torch.bool, device=inside.device)
    seen[:, :, :count] = False
    seen[:, :count] = False
    seen[:, :count, :count] = torch.eye(count, dtype=torch.bool, device=inside.device)
    seen[:, :count, total - patches :] = inside
    return seen[:, None]


@torch.inference_mode()
def mask_logits(
    model: PointViT, images: Tensor, coverage: Tensor, flip: bool = False, precision: str = "auto"
) -> Tensor:
    """Logits of masks; the counterpart of `predict.point_logits`.

    Args:
        images: (B, 3, H, W) uint8 RGB at the model's size, on the model's device.
        coverage: (B, N, P) float in [0, 1].
        flip: average log-probabilities with those of the flipped image and masks.
        precision: "auto", "float32", "bfloat16" or "float16".
    Returns:
        (B, N, K) float32.
    """
    pixels = model.normalize(images)
    with mixed_precision(precision, pixels.device):
        logits: Tensor = model(pixels, coverage).float()
        if flip:
            other = model(pixels.flip(-1), coverage.unflatten(-1, model.grid).flip(-1).flatten(-2)).float()
            logits = (logits.log_softmax(-1) + other.log_softmax(-1)) / 2
    return logits
