"""Pre-trained weights of a backbone, put into a classifier."""

from __future__ import annotations

import re

import torch
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from vitp_pipeline.classifier.backbones.kinds import Vit
from vitp_pipeline.classifier.backbones.tokens import keeps_class_token
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.runtime.output import results_apart

_NOT_BACKBONE = ("head.", "head_dist.", "attn_pool.", "decoder_")  # the last: MAE's, in its file with the decoder
_PATCHES = re.compile(r"(.*\.)?patch_embed\.proj(ection)?\.weight|(visual\.)?conv1\.weight")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def load_backbone_weights(model: PointViT, state: dict[str, Tensor], name: str) -> None:
    """Put pre-trained weights into a model's backbone; the position table is resampled to its grid, as timm does.

    Accepted are timm's names and, through timm, the original files of DINOv2, DINOv3, MAE, CLIP, Perception Encoder
    and others. Blocks that the model does not use, classification heads, pooling and decoders are left out. A point
    slot of the model's own (see `model`) starts as the class token, since such a backbone has no weights for it.

    Raises:
        IncompatibleError: a tensor is missing, unknown or of another shape.
    """
    vit = model.backbone
    wanted = getattr(vit.patch_embed.proj, "weight", None)
    for key, value in state.items():  # timm would resample another patch size
        if wanted is not None and _PATCHES.fullmatch(key) and value.shape[2:] != wanted.shape[2:]:
            raise IncompatibleError(f"{name}: {key} is {tuple(value.shape)}, the backbone wants {tuple(wanted.shape)}")
    given = _by_timms_names(state, vit, name)
    norms = {key: value for key, value in given.items() if key.startswith(("norm.", "fc_norm."))}
    given = {key: value for key, value in given.items() if key not in norms and not _is_unused(key, model.depth)}
    if not isinstance(vit.norm, nn.Identity):  # see `PointViT._feature_norm`
        # a pooling ViT's norm lies behind the pooling; here it is the tokens' own
        pooling = not any(key.startswith("norm.") for key in norms)
        given |= {k.removeprefix("fc_"): v for k, v in norms.items() if pooling or k.startswith("norm.")}
    own = vit.state_dict()
    for key, value in given.items():
        if key in own and own[key].shape != value.shape:
            raise IncompatibleError(
                f"{name}: {key} is {tuple(value.shape)}, the backbone wants {tuple(own[key].shape)}"
            )
    missing, unexpected = vit.load_state_dict(given, strict=False)
    replaced = () if keeps_class_token(vit) else ("cls_token", "dist_token")  # points take their place
    missing = [key for key in missing if key not in replaced]
    if missing or unexpected:
        kind, key = ("lacks", missing[0]) if missing else ("has the unknown tensor", unexpected[0])
        raise IncompatibleError(f"{name}: {kind} {key}", f"Is it a {model.config.backbone}?")
    if model.point_slot is not None and "cls_token" in given:
        with torch.no_grad():
            model.point_slot.copy_(given["cls_token"].flatten())


def _by_timms_names(state: dict[str, Tensor], vit: Vit, name: str) -> dict[str, Tensor]:
    to_timm = (eva if isinstance(vit, eva.Eva) else vision_transformer).checkpoint_filter_fn
    try:
        with results_apart():  # timm prints
            renamed = to_timm({key: value.float() for key, value in state.items()}, vit)
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise IncompatibleError(f"{name}: not weights of a ViT ({error})") from error
    return {key: value for key, value in renamed.items() if not key.startswith(_NOT_BACKBONE)}


def _is_unused(key: str, depth: int) -> bool:
    block = _BLOCK.match(key)
    return block is not None and int(block[1]) >= depth
