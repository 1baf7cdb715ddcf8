"""The one place where models of timm are made: by a name of its own registry, with arguments of a list."""

from __future__ import annotations

import difflib
import re

import timm
from torch import nn

from vitp_pipeline.config.backbone_args import backbone_args
from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import Size


def create_vit(name: str, size: Size, args: str = "", drop_path: float = 0.0, pretrained: bool = False) -> nn.Module:
    """Make a backbone without a head.

    Args:
        name: of timm's registry, with or without the tag of its weights. Names that timm would take for a place
            (`hf-hub:OWNER/NAME`, `local-dir:PATH`) are no names of it.
        size: (height, width) of the images.
        args: JSON of further arguments, see `config.backbone_args`.
        pretrained: fetch its weights; else nothing is read or sent.
    Raises:
        UsageError: no such model, or arguments that cannot be.
        Exception: any, where its weights cannot be fetched.
    """
    if not re.fullmatch(r"\w{1,100}(\.\w{1,100})?", name, re.ASCII) or not timm.is_model(name):
        near = difflib.get_close_matches(name[:100], timm.list_models(module="vision_transformer"), 1)
        raise UsageError(
            f"backbone {name[:100]!r} is no model of timm",
            f"Did you mean {near[0]!r}?" if near else "For example vit_base_patch14_dinov2",
        )
    options = backbone_args(args, f"backbone {name}: backbone_args")
    try:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=0, img_size=size, drop_path_rate=drop_path, **options
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if pretrained:
            raise
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"timm cannot make the backbone {name!r} ({reason})") from error
