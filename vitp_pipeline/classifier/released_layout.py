"""Checkpoints of the authors' released classifier (sajjad-sh33/ViT-P, `dinov2/train/train.py`).

The released layout is flat: `pos_embed (1, 1370, D)`, `mask_token`, `patch_embed.proj.*`,
`cls_embeddings.weight (D, 2)`, `blocks.i.*`, `norm.*`, `head.weight (K, D)`, `head.bias`. It has no `cls_token`: points
stand in its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

import torch
from torch import Tensor

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.errors import IncompatibleError

ARCHITECTURES = {
    (384, 12): "vit_small_patch14_dinov2",
    (768, 12): "vit_base_patch14_dinov2",
    (1024, 24): "vit_large_patch14_dinov2",
}
"""timm names by (D, number of blocks)."""

HEAD_WIDTH, SIDE = 64, 37
"""Width of an attention head, and side of the position table, of all of them."""

_INPUT_SIZES = {r"model_Cityscapes\w*": (518, 1036)}
"""Height and width of the input, px, by the authors' file names; of all others it is 518×518."""

POINT_LAYER = "cls_embeddings.weight"
_READ = (("pos_embed", 3), ("head.bias", 1), (POINT_LAYER, 2))
"""Tensors that tell the architecture, and their numbers of axes."""
_POINT_DIMS: dict[int, Literal[2, 4]] = {2: 2, 4: 4}
_HINT = "Give a released ViT-P .pth; files of other makes need --as, see `vitp import-checkpoint --help`"


def from_official(
    state: dict[str, Tensor], classes: Sequence[str] | None = None, image_size: tuple[int, int] = (518, 518)
) -> PointViT:
    """A classifier with the released weights; architecture, K and numbers per point are read off the tensors.

    Args:
        state: the flat state dict.
        classes: K names in the order of the logits; None = "class 0", "class 1", …
        image_size: (518, 518), or (518, 1036) for the Cityscapes ones.
    Raises:
        IncompatibleError: not that layout, an unknown architecture, or another number of classes.
    """
    (_, _, width), (count,), (_, numbers) = (_shape(state, *of) for of in _READ)
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    depth = len(blocks)
    if (width, depth) not in ARCHITECTURES:
        raise IncompatibleError(
            f"a released ViT-P of width {width} and {depth} blocks is not known",
            f"Known are: {', '.join(f'{w} and {d}' for w, d in ARCHITECTURES)}",
        )
    names = tuple(classes) if classes is not None else tuple(f"class {k}" for k in range(count))
    if len(names) != count:
        raise IncompatibleError(
            f"the checkpoint has {count} classes, {len(names)} names are given",
            "Give the --manifest it was trained on",
        )
    if (point_dim := _POINT_DIMS.get(numbers)) is None:
        raise IncompatibleError(
            f"not a released ViT-P checkpoint: its points have {numbers} numbers, not 2 or 4", _HINT
        )
    model = PointViT(
        ModelConfig(
            backbone=ARCHITECTURES[width, depth],
            classes=names,
            image_size=image_size,
            point_dim=point_dim,
            pos_embed="offset",
        )
    )
    renamed = {_renamed(key): value.float() for key, value in state.items() if key not in ("mask_token", "cls_token")}
    renamed["backbone.cls_token"] = torch.zeros(1, 1, width)  # unused: points stand in its place
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise IncompatibleError(
            f"not a released ViT-P checkpoint: {' '.join(str(error).split())[:300]}", _HINT
        ) from error
    return model.eval()


def input_size(file: PurePath) -> tuple[int, int]:
    """Look up height and width of the input of a released file, px, by its name: the file does not contain them."""
    return next((size for name, size in _INPUT_SIZES.items() if re.fullmatch(name, file.stem)), (518, 518))


def _shape(state: dict[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    if key not in state:
        raise IncompatibleError(f"not a released ViT-P checkpoint: it lacks {key}", _HINT)
    if state[key].ndim != axes:
        raise IncompatibleError(
            f"not a released ViT-P checkpoint: {key} has {state[key].ndim} axes in place of {axes}", _HINT
        )
    return tuple(state[key].shape)


def _renamed(key: str) -> str:
    if key == POINT_LAYER:
        return "point_layer.weight"
    return key if key.startswith("head.") else f"backbone.{key}"
