"""Trained classifiers to the layout of the authors' released ones, which `released_layout` reads.

Their code has no settings for what vitp can vary, so the weights have to make the difference:

    height and width   their points are (row, col). The two other columns meet zeros at every point and are left out
    positions          their code resamples a table of 37×37 with an offset of 0.1, always; the table written is the one
                       that gives the positions of vitp when it is read that way (`offset_table`)
    fewer blocks       blocks behind the last one in use have LayerScale 0: they pass tokens unchanged
    norm               without affine weights, or of batch statistics, it becomes weight and bias of their LayerNorm
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from vitp_pipeline.classifier.backbones.tokens import (
    has_class_row,
    kept_tokens,
    offset_positions,
    offset_table,
    patch_positions,
)
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.released_layout import ARCHITECTURES, HEAD_WIDTH, POINT_LAYER, SIDE
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.runtime.progress import say

_BLOCK = ("norm1", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp.fc1", "mlp.fc2", "ls2")


@dataclass(frozen=True)
class Released:
    """A classifier in the released layout.

    Attributes:
        state: the flat state dict, float32.
        position_error: largest difference of a position that their code reads from the one that vitp reads.
        notes: what the weights stand in for, and what is left out.
    """

    state: dict[str, Tensor]
    position_error: float
    notes: tuple[str, ...]

    def report(self, out: Path) -> None:
        """Report a written file."""
        say(f"{out}: the released layout, positions to {self.position_error:.0e}")
        for note in self.notes:
            say(f"  {note}")


def to_official(model: PointViT) -> Released:
    """Write a classifier of `point_token = "linear"` as the authors' code loads it.

    Points score the same there to rounding, as far as `position_error` is 0 to rounding: for inputs of up to 37×37
    patches, such as 518×518. The table of a larger grid (518×1036) is the nearest one.

    Raises:
        IncompatibleError: their model lacks a part; the message names all such parts.
    """
    if parts := _without_place(model):
        raise IncompatibleError(
            f"the released layout has no place for {', '.join(parts)}",
            "Train one with the paper's point_token, attention, head and backbone",
        )
    vit, width, used = model.backbone, model.backbone.embed_dim, model.feature_layers[0]
    depth = next(blocks for wide, blocks in ARCHITECTURES if wide == width)
    own = {key.removeprefix("backbone."): value.detach().float() for key, value in model.state_dict().items()}
    table, error = _table(model)
    slot = own["pos_embed"][:, :1] if has_class_row(vit) else own["point_slot"][None, None]
    state = {
        "pos_embed": torch.cat([slot, table], 1),
        "mask_token": torch.zeros(1, width),  # never used, but loaded strictly
        "patch_embed.proj.weight": own["patch_embed.proj.weight"],
        "patch_embed.proj.bias": own["patch_embed.proj.bias"],
        POINT_LAYER: own["point_layer.weight"][:, :2],
        "head.weight": own["head.weight"],
        "head.bias": own["head.bias"],
    }
    state["norm.weight"], state["norm.bias"] = _norm(model)
    if registers := kept_tokens(vit, 1, with_class=False):
        state["register_tokens"] = registers[0].detach().float()
    for number in range(depth):
        for key, value in own.items():
            if key.startswith("blocks.0."):
                name = key.replace("blocks.0.", f"blocks.{number}.")
                state[name] = own[name] if number < used else torch.zeros_like(value)
    return Released({key: value.contiguous() for key, value in state.items()}, error, _notes(model, used, depth))


def _table(model: PointViT) -> tuple[Tensor, float]:
    """Make the (1, 37², D) table that their code reads as the positions of a model, and give its largest error."""
    positions = patch_positions(model.backbone, model.grid, False)
    assert positions is not None
    positions = positions.detach().float()
    if model.config.pos_embed == "offset":
        return positions, 0.0  # vitp reads it in their way, too
    table = offset_table(positions, model.grid, SIDE)
    return table, float((offset_positions(table, model.grid) - positions).abs().max())


def _without_place(model: PointViT) -> list[str]:
    """List the parts of a classifier that the released layout cannot express."""
    config, vit, parts = model.config, model.backbone, []
    if config.prompt != "point":
        return [f'prompt = "{config.prompt}"']
    for key, value in (("point_token", "linear"), ("attention", "full"), ("head", "linear")):
        if getattr(config, key) != value:
            parts.append(f'{key} = "{getattr(config, key)}"')
    if len(model.feature_layers) > 1:
        parts.append(f"feature_layers = {list(model.feature_layers)}")
    if not _is_dinov2(model):
        parts.append(f"the backbone {config.backbone}")
    given = [round(float(value), 4) for value in (*model.mean.flatten(), *model.std.flatten())]
    if given != [round(value, 4) for value in (*IMAGENET_DEFAULT_MEAN, *IMAGENET_DEFAULT_STD)]:
        parts.append("images that are not normalized by ImageNet's mean and std")
    if vit.pos_embed is None:
        parts.append("no position table")
    return parts


def _is_dinov2(model: PointViT) -> bool:
    """Tell if the backbone has the widths, depth and layers of DINOv2 S, B or L, with registers or without."""
    vit, width = model.backbone, model.backbone.embed_dim
    block: Any = vit.blocks[0]
    names = {
        f"{part}.gamma" if part.startswith("ls") else f"{part}.{kind}" for part in _BLOCK for kind in ("weight", "bias")
    }
    return (
        any(wide == width and model.depth <= blocks for wide, blocks in ARCHITECTURES)
        and {name for name, _ in block.named_parameters()} == names
        and getattr(block.attn, "num_heads", 0) == width // HEAD_WIDTH
        and tuple(block.mlp.fc1.weight.shape) == (4 * width, width)
        and isinstance(block.mlp.act, nn.GELU)
        and tuple(vit.patch_embed.proj.weight.shape[-2:]) == (14, 14)
        and isinstance(vit.norm_pre, nn.Identity)
        and getattr(vit, "rope", None) is None
    )


def _norm(model: PointViT) -> tuple[Tensor, Tensor]:
    """Weight and bias of the last LayerNorm; the two kinds without own ones normalize with an ε of 1e-5, not 1e-6."""
    width = model.backbone.embed_dim
    if isinstance(model.backbone.norm, nn.LayerNorm):
        return model.backbone.norm.weight.detach().float(), model.backbone.norm.bias.detach().float()
    weight, bias = torch.ones(width), torch.zeros(width)
    if isinstance(norm := model.head_norm, nn.BatchNorm1d) and norm.running_var is not None:
        assert norm.running_mean is not None
        weight = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias.detach() - norm.running_mean * weight
    return weight, bias


def _notes(model: PointViT, used: int, depth: int) -> tuple[str, ...]:
    notes = []
    if model.config.point_dim == 4:
        notes.append("height and width of boxes are left out; points, which have none, score the same")
    if used < depth:
        notes.append(f"blocks {used + 1} to {depth} are filled up to pass tokens unchanged")
    if model.config.norm != "layer":
        notes.append(f'norm = "{model.config.norm}" is part of the weights of the last norm')
    if model.backbone.reg_token is not None:
        notes.append(f"set num_register_tokens = {model.backbone.reg_token.shape[1]} in their configuration")
    return tuple(notes)
