"""Check the JSON files of a transformers folder before transformers makes arguments of it.

Such a folder comes from anywhere. transformers runs code of the Hub where `auto_map` or an attention's name asks for it
and is allowed to, asks the Hub for a backbone by name, and makes tensors of any size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

BACKBONES = {
    *("convnext", "convnextv2", "dinat", "focalnet", "maskformer-swin", "resnet", "swin", "swinv2"),
    "rf_detr_dinov2",
    "vitp-internimage",
}
"""`model_type` of backbones that are built; none of them asks timm or the Hub for one."""

PARTS = {
    "vision_config": {
        *("sam_vision_model", "sam_hq_vision_model", "sam2_vision_model", "sam3_vision_model", "edgetam_vision_model"),
    },
    "backbone_config": {"sam2_hiera_det_model", "sam3_vit_model", "timm_wrapper"},
}
"""`model_type` of the image encoders of Segment Anything's models. A timm one is built without weights, by name."""
TIMM_ARGUMENTS = {"in_chans", "features_only", "out_indices"}

LARGEST, MOST_LAYERS, LONGEST, DEEPEST = 10**6, 1000, 10**5, 20
LARGEST_EDGE = 2**16

_CODE = ("auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "kernel_config")
_IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation\w*")
_LAYERS = re.compile(r".*(layers|depth|blocks|stages|heads).*")


def check_config(content: Mapping[str, Any]) -> None:
    """Raise ValueError where a config.json asks for code, for remote files, or for excessive sizes."""
    _check(content, (), 0)
    backbone = content.get("backbone_config")
    if backbone is not None and (not isinstance(backbone, Mapping) or backbone.get("model_type") not in BACKBONES):
        raise ValueError(f"backbone_config is none of {', '.join(sorted(BACKBONES))}")
    if any(content.get(key) for key in ("backbone", "backbone_kwargs", "use_pretrained_backbone")):
        raise ValueError("backbone names one of another library or place; only backbone_config is read")


def check_preprocessor(content: Mapping[str, Any]) -> None:
    """Raise ValueError where a preprocessor_config.json has invalid sizes, means or deviations."""
    size = content.get("size")
    edges = size if isinstance(size, Mapping) else {"size": size, "max_size": content.get("max_size")}
    for key, edge in edges.items():
        if edge is not None and not (type(edge) is int and 0 < edge <= LARGEST_EDGE):
            raise ValueError(f"{str(key)[:40]} = {str(edge)[:40]} is not a number of pixels in [1, {LARGEST_EDGE}]")
    for key, least in (("image_mean", -1e3), ("image_std", 1e-6)):
        values = content.get(key)
        if values and not (isinstance(values, list) and len(values) == 3 and all(_is_number(v, least) for v in values)):
            raise ValueError(f"{key} = {str(values)[:60]} are not three numbers")


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= 1e3


def _check(value: Any, path: tuple[str, ...], depth: int) -> None:
    where = ".".join(path)[-60:]
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, Mapping | list):
        if len(value) > LONGEST:
            raise ValueError(f"{where} has {len(value)} entries")
        entries = value.items() if isinstance(value, Mapping) else ((path[-1] if path else "", item) for item in value)
        for key, item in entries:
            if isinstance(value, Mapping):
                _check_key(key, item)
                if key == "vision_config" or (key == "backbone_config" and path and path[-1] == "vision_config"):
                    _check_part(key, item)
            _check(item, (*path, key) if isinstance(value, Mapping) else path, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        layers = bool(path) and _LAYERS.fullmatch(path[-1]) is not None
        if not math.isfinite(value) or abs(value) > (MOST_LAYERS if layers else LARGEST):
            raise ValueError(f"{where} = {str(value)[:30]} is too large")


def _check_key(key: str, value: Any) -> None:
    if key in _CODE and value:
        raise ValueError(f"{key} asks for code, which a folder cannot bring")
    if _IMPLEMENTATION.fullmatch(key) and value not in (None, "eager", "sdpa"):
        raise ValueError(f"{key} = {str(value)[:60]} names an implementation of another place")
    if key == "architecture" and value is not None and not (isinstance(value, str) and re.fullmatch(r"[\w.]+", value)):
        raise ValueError(f"architecture = {str(value)[:60]} is not the name of one of timm's")
    if key == "model_args" and value and not (isinstance(value, Mapping) and value.keys() <= TIMM_ARGUMENTS):
        raise ValueError(f"model_args = {str(value)[:60]} are not only {', '.join(sorted(TIMM_ARGUMENTS))}")
    if key == "backbone" and value is not None and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
        raise ValueError(f"backbone = {str(value)[:60]} is not a plain name")


def _check_part(key: str, value: Any) -> None:
    kind = value.get("model_type") if isinstance(value, Mapping) else None
    if value is not None and (not isinstance(value, Mapping) or (kind is not None and kind not in PARTS[key])):
        raise ValueError(f"{key} is none of {', '.join(sorted(PARTS[key]))}")
