"""Strip the prefixes and tables under which training scripts save the weights of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitp_pipeline.errors import InputError

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What data-parallel training, torch.compile and checkpointing put between a name's parts."""

_OF_EVERY_VIT = ("patch_embed.proj.weight", "patch_embed.projection.weight", "visual.class_embedding")
"""The names of a tensor that every ViT has: timm's (also DINOv2's, MAE's, …), Sapiens' and CLIP's."""

_OF_A_TOWER = ("conv1.weight", "positional_embedding")
"""The names that CLIP's ViT has where it stands alone, as in Perception Encoder's files."""

_AVERAGED = {"teacher", "target_encoder", "model_ema", "state_dict_ema", "ema"}
"""Name parts of the better copy of a network in a file, such as a teacher or a running mean."""

_CHUNK = re.compile(r"\bblocks\.\d+\.(\d+)\.")
"""DINOv2 trains its blocks in chunks; a block's own number is that in all of them."""

_DEEPEST = 8


def unwrapped(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take the wrappers out of all names, unless two tensors would have one name."""
    found = {".".join(part for part in name.split(".") if part not in _WRAPPERS): t for name, t in weights.items()}
    return found if len(found) == len(weights) else dict(weights)


def backbone_weights(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Find the tensors of a ViT in what a training has saved.

    Any prefix of its names (`module.`, `model.backbone.`, `teacher.backbone.` …) and any table around them
    (`state_dict`, `model`, `teacher` …) is taken off; what lies elsewhere in the file is left out. Of a student and its
    teacher, or weights and their running mean, the latter is taken.

    Raises:
        InputError: no tensors, or several networks, which are named.
    """
    weights = unwrapped({_CHUNK.sub(r"blocks.\1.", name): tensor for name, tensor in _flat(content).items()})
    if not weights:
        raise InputError(f"{path}: contains no state dict", "Give the model weights, not a training checkpoint")
    nests = {name.removesuffix(end) for name in weights for end in _OF_EVERY_VIT if f".{name}".endswith(f".{end}")}
    if not nests:
        first, second = _OF_A_TOWER
        nests = {name.removesuffix(first) for name in weights if f".{name}".endswith(f".{first}")}
        nests = {nest for nest in nests if f"{nest}{second}" in weights}
    if len(nests) > 1:
        nests = {nest for nest in nests if not _AVERAGED.isdisjoint(nest.split("."))} or nests
    if len(nests) > 1:
        named = ", ".join(sorted(nest.rstrip(".") or "one at the top" for nest in nests))
        raise InputError(f"{path}: holds several networks: {named}", "Save the tensors of one of them alone")
    if not nests:  # the names that most scripts use
        inner = content
        for key in ("state_dict", "model", "teacher"):
            inner = inner[key] if isinstance(inner.get(key), Mapping) else inner
        return unwrapped(_flat(inner))
    (nest,) = nests
    return {name.removeprefix(nest): tensor for name, tensor in weights.items() if name.startswith(nest)}


def _flat(content: Any, above: str = "", depth: int = 0) -> dict[str, torch.Tensor]:
    """Tensors in tables in tables, by dotted names."""
    found: dict[str, torch.Tensor] = {}
    if isinstance(content, Mapping) and depth < _DEEPEST:
        for key, value in content.items():
            if isinstance(value, torch.Tensor):
                found[f"{above}{key}"] = value
            else:
                found |= _flat(value, f"{above}{key}.", depth + 1)
    return found
