"""Start a training from a trained classifier: boxes → points (paper §3.4), or one dataset → another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed

from vitp_pipeline.classifier.model import CoordinateLayer, PointViT
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.errors import IncompatibleError


def start_from(model: PointViT, source: PointViT, name: str, new_head: bool = False) -> None:
    """Copy a classifier's backbone, point and mask layers, and head into a new model.

    Another image size resamples the position table. A point layer of 2 numbers (released weights) enters one of 4 with
    zeros for height and width, which leaves the scores of points as they were.

    Args:
        name: of the source, for messages.
        new_head: leave the head as `model` has it: newly drawn. The authors' code always does
            (`dinov2/utils/utils.py`).
    Raises:
        IncompatibleError: another backbone, kind of point token, or shape; or a head, to be kept, of other classes or
            another form. The model may then have changed.
    """
    for key in ("backbone", "point_token", "pos_embed"):
        ours, theirs = getattr(model.config, key), getattr(source.config, key)
        if ours != theirs:
            raise IncompatibleError(f"{name}: has {key} {theirs!r}, the recipe wants {ours!r}", "Make them the same")
    state = source.backbone.state_dict()
    if source.config.pos_embed == "plain" and source.grid != model.grid and "pos_embed" in state:
        slots = state["pos_embed"].shape[1] - source.grid[0] * source.grid[1]
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], list(model.grid), list(source.grid), num_prefix_tokens=slots
        )
    load_backbone_weights(model, state, name)
    if (model.point_slot is None) != (source.point_slot is None):
        raise IncompatibleError(f"{name}: its points start from another token", "Use the same backbone_args")
    if isinstance(source.point_layer, CoordinateLayer) and isinstance(model.point_layer, CoordinateLayer):
        weight = F.pad(source.point_layer.weight, (0, model.config.point_dim - source.config.point_dim))
        if weight.shape != model.point_layer.weight.shape:
            raise IncompatibleError(f"{name}: its point layer is {tuple(weight.shape)}", "Use the same backbone_args")
        with torch.no_grad():
            model.point_layer.weight.copy_(weight)
            if model.point_slot is not None and source.point_slot is not None:
                model.point_slot.copy_(source.point_slot)
    given = source.state_dict()
    ours, theirs = (
        {key: value.shape for key, value in m.state_dict().items() if key.startswith("mask_layers.")}
        for m in (model, source)
    )
    if ours != theirs:
        raise IncompatibleError(f"{name}: lacks the mask layers of the recipe", "Make maft_layers the same")
    model.load_state_dict({key: given[key] for key in ours}, strict=False)
    if not new_head:
        _copy_head(model, source, name)


def _copy_head(model: PointViT, source: PointViT, name: str) -> None:
    last, given = (
        {key: value for key, value in m.state_dict().items() if key.startswith(("head.", "head_norm."))}
        for m in (model, source)
    )
    wrong = ""
    if source.classes != model.classes:
        wrong = _difference(source.classes, model.classes)
    elif {k: v.shape for k, v in last.items()} != {k: v.shape for k, v in given.items()}:
        wrong = "has another form"
    if wrong:
        raise IncompatibleError(
            f"{name}: its head {wrong}, so it cannot be kept", 'Set init_head = "new" to draw a head at random'
        )
    model.load_state_dict(given, strict=False)


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """Say in a few words how the classes of a head differ."""
    if len(theirs) != len(ours):
        return f"has {len(theirs)} classes, the manifest {len(ours)}"
    at = next(number for number, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    return f"has other classes ({theirs[at]!r} where the manifest has {ours[at]!r})"
