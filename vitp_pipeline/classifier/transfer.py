"""Start a training from a trained classifier: boxes → points (paper §3.4), or one dataset → another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed

from vitp_pipeline.classifier.model import CoordinateLayer, PointViT
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.errors import IncompatibleError


def start_from(model: PointViT, source: PointViT, name: str) -> bool:
    """Copy a classifier's backbone, point and mask layers and, for the same class names, head into a new model.

    Another image size resamples the position table. A point layer of 2 numbers (released weights) enters one of 4 with
    zeros for height and width, which leaves the scores of points as they were. A head of other classes, or of another
    form, stays as `model` has it: newly drawn.

    Args:
        name: of the source, for messages.
    Returns:
        Whether the head was kept.
    Raises:
        IncompatibleError: another backbone, kind of point token, or shape.
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
    last = {key: value for key, value in model.state_dict().items() if key.startswith(("head.", "head_norm."))}
    fits = source.classes == model.classes and all(
        key in given and given[key].shape == value.shape for key, value in last.items()
    )
    if fits:
        model.load_state_dict({key: given[key] for key in last}, strict=False)
    return fits
