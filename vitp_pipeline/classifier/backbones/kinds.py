"""Models of timm that can be a backbone: those whose tokens are one sequence of patches that points can join.

The decision needs only the model's class, which timm's annotations give without building anything; the reason of a
refusal comes from a model built on the meta device.
"""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import VisionTransformer
from timm.models.eva import Eva
from torch import nn

from vitp_pipeline.classifier.backbones.rotary import knows_rotary
from vitp_pipeline.geometry import Size

Vit = VisionTransformer | Eva
"""The classes of backbones, subclasses included."""

_ATTENTION = re.compile(r"Attention|Attn|MHSA|GPSA")
_RELATIVE = re.compile(r"rel_pos|relative_position")


@dataclass(frozen=True)
class BackboneKind:
    """An accepted model of timm.

    Attributes:
        name: of timm's registry, without a tag.
        kind: "ViT", "hybrid ViT" (patches come out of convolutions) or "Eva".
        positions: "table", "rotary", "table and rotary" or "none".
        patch: (height, width) in pixels.
        registers: register tokens.
        weights: licenses by the tags of its weights; "" where timm says none.
    """

    name: str
    kind: str
    positions: str
    patch: Size
    registers: int
    weights: dict[str, str]


def model_class(name: str) -> type[nn.Module]:
    """Give the class of a name of timm's registry, with or without a tag."""
    return _said_class(name) or type(built(name))


def accepted_names(pattern: str = "") -> list[str]:
    """List the names, without tags, of models that can be backbones; `pattern` as in `timm.list_models`."""
    return [name for name in timm.list_models(pattern) if issubclass(_said_class(name) or nn.Module, Vit)]


def _said_class(name: str) -> type[nn.Module] | None:
    said = timm.model_entrypoint(name).__annotations__.get("return")
    return said if isinstance(said, type) else None


def built(name: str, **options: Any) -> nn.Module:
    """Build a model without memory and head."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0, **options)
    return model


def why_not(model: nn.Module) -> str | None:
    """Say why a model of timm cannot be a backbone; None if it can."""
    if isinstance(model, Vit):
        rope = getattr(model, "rope", None)
        if rope is not None and not knows_rotary(rope):
            return f"the position of a point in its rotary embedding ({type(rope).__name__}) is not known"
        if not isinstance(model.patch_drop, nn.Identity | None):
            return "backbone_args: patch_drop_rate would drop points"
        return None
    sizes = sorted({stage["reduction"] for stage in _stages(model)})
    if len(sizes) > 1:
        return f"its features have several resolutions ({', '.join(map(str, sizes))} px), points need tokens of one"
    if not has_attention(model):
        return "it has no attention in which points could take part"
    if any(_RELATIVE.search(name) for name, _ in (*model.named_parameters(), *model.named_modules())):
        return "its attention adds a bias for the distance of two patches, which a point does not have"
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.ModuleList | nn.Sequential) and "attn_mask" not in _arguments(blocks[0]):
        return "its blocks take no attention mask, which would hide the padding of points"
    return f"how {type(model).__name__} puts its tokens together is not known (VisionTransformer and Eva are)"


def has_attention(model: nn.Module) -> bool:
    """Tell whether a model is a transformer, by the names of its parts' classes."""
    return any(_ATTENTION.search(type(module).__name__) for module in model.modules())


def describe(name: str) -> BackboneKind:
    """Describe an accepted model by its name."""
    vit = None
    for options in ({"depth": 1}, {"depth": 1, "num_kv_heads": None}, {}):
        with suppress(TypeError, AssertionError):
            vit = built(name, **options)
            break
    if not isinstance(vit, Vit):
        raise TypeError(f"{name} is no backbone")
    tables = ["table"] * (vit.pos_embed is not None) + ["rotary"] * (getattr(vit, "rope", None) is not None)
    stem = not isinstance(vit.patch_embed, PatchEmbed)
    tags = (tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{name}.*"))
    return BackboneKind(
        name=name,
        kind="Eva" if isinstance(vit, Eva) else "hybrid ViT" if stem else "ViT",
        positions=" and ".join(tables) or "none",
        patch=patch_of(vit),
        registers=0 if vit.reg_token is None else vit.reg_token.shape[1],
        weights={tag: getattr(timm.get_pretrained_cfg(f"{name}.{tag}"), "license", None) or "" for tag in tags},
    )


def patch_of(vit: Vit) -> Size:
    """Give (height, width) of a patch in pixels."""
    patch: Any = vit.patch_embed.feat_ratio(as_scalar=False)
    return patch[0], patch[1]


def _stages(model: nn.Module) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", [])
    return list(getattr(info, "info", info))


def _arguments(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)
