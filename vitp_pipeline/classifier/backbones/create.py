"""The one place where models of timm are made: by a name of its registry, with allowed arguments."""

from __future__ import annotations

import re
from typing import Any

import timm
from timm.layers.format import Format
from timm.models.eva import Eva
from torch import nn

from vitp_pipeline.classifier.backbones.kinds import Vit, built, model_class, why_not
from vitp_pipeline.classifier.backbones.nearest import nearest_name, nearest_tag
from vitp_pipeline.config.backbone_args import backbone_args
from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import Size

_HINT = "For example vit_base_patch14_dinov2; `vitp backbones` lists all"


def create_vit(name: str, size: Size, args: str = "", drop_path: float = 0.0, pretrained: bool = False) -> Vit:
    """Make a backbone without a head.

    Args:
        name: of timm's registry, with or without the tag of its weights. Names that timm reads as a location
            (`hf-hub:OWNER/NAME`, `local-dir:PATH`) are refused.
        size: (height, width) of the images.
        args: JSON of further arguments, see `config.backbone_args`.
        pretrained: fetch its weights; else nothing is read or sent.
    Raises:
        UsageError: no such model, one that cannot be a backbone, or arguments that cannot be.
        Exception: any, where its weights cannot be fetched.
    """
    cls = check_name(name)
    options: dict[str, Any] = backbone_args(args, f"backbone {name}: backbone_args")
    if issubclass(cls, Eva):
        options["dynamic_img_size"] = True  # else it keeps a table of rotations, as large as the grid and no weight
    try:
        vit = timm.create_model(
            name, pretrained=pretrained, num_classes=0, img_size=size, drop_path_rate=drop_path, **options
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if pretrained:
            raise
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"timm cannot make the backbone {name!r} ({reason})") from error
    if refused := why_not(vit):
        raise UsageError(f"{name!r} cannot be a backbone: {refused}", _HINT)
    return _for_points(vit)


def check_name(name: str) -> type[nn.Module]:
    """Give the class of a backbone by its name.

    Raises:
        UsageError: timm knows no such name, or such a model cannot be a backbone; the message says why.
    """
    if not re.fullmatch(r"\w{1,100}(\.\w{1,100})?", name, re.ASCII) or not timm.is_model(name):
        near = nearest_name(name)
        raise UsageError(f"backbone {name[:100]!r} is no model of timm", f"Did you mean {near!r}?" if near else _HINT)
    cls = model_class(name)
    if not issubclass(cls, Vit):
        raise UsageError(f"{name!r} cannot be a backbone: {why_not(built(name.partition('.')[0]))}", _HINT)
    bare, _, tag = name.partition(".")
    if tag and name not in timm.list_pretrained(f"{bare}.*"):
        near = nearest_tag(bare, tag)
        raise UsageError(
            f"backbone {name!r}: timm has no weights of {bare} with that tag",
            f"Did you mean {near!r}?" if near else f"`vitp backbones {bare} --json` lists its tags",
        )
    return cls


def _for_points(vit: Any) -> Vit:
    """Remove the layers after the blocks except the norm, and output patches as a sequence."""
    if vit.dynamic_img_size:  # the size is known: the table is resampled once
        vit.dynamic_img_size, vit.patch_embed.flatten, vit.patch_embed.output_fmt = False, True, Format.NCHW
    if isinstance(vit.norm, nn.Identity):  # a pooling ViT has its norm behind the pooling
        vit.norm, vit.fc_norm = vit.fc_norm, nn.Identity()
    vit.attn_pool = None
    found: Vit = vit
    blocks: Any = vit.blocks
    if isinstance(vit, Eva):
        for block in blocks:
            block.attn.num_prefix_tokens = 0  # points come first; `rotary.rotations` leaves unturned what has no place
        return found
    for token in (vit.cls_token, getattr(vit, "dist_token", None)):
        if token is not None:
            token.requires_grad_(False)  # not used: points stand in its place
    return found
