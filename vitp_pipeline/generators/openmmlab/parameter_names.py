"""Translate layer names of mask transformers from mmsegmentation 0.x and mmdetection 2.x to current names.

Only the containers of the transformer layers were renamed; no tensor was reshaped, split or merged.
The old names count the attentions in the order in which a layer runs them, which Mask2Former's decoder changed against
MaskFormer's. Both attentions have the same shapes: a table that swaps them loads strictly and is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from vitp_pipeline.errors import IncompatibleError

MASK2FORMER_ORDER = ("cross_attn", "self_attn")
MASKFORMER_ORDER = ("self_attn", "cross_attn")

_LAYER = re.compile(
    r"(?P<stack>(?:decode_head|panoptic_head)\.(?P<part>pixel_decoder\.encoder|transformer_decoder)\.layers\.\d+)\."
    r"(?P<kind>attentions|ffns)\.(?P<index>\d+)\.(?P<rest>.+)"
)
# mmseg 0.x gave every head this classifier, mask transformers as well, which never use it.
_UNUSED = re.compile(r"decode_head\.conv_seg\.(weight|bias)")


def decoder_order(head: object) -> tuple[str, str]:
    """Return what the attentions 0 and 1 of a decoder layer of this mask head are in the old names."""
    from mmdet.models.dense_heads import Mask2FormerHead

    return MASK2FORMER_ORDER if isinstance(head, Mask2FormerHead) else MASKFORMER_ORDER


def has_old_names(weights: Mapping[str, torch.Tensor]) -> bool:
    """Tell if a mask head's layers have the names of mmsegmentation 0.x and mmdetection 2.x."""
    return any(_LAYER.fullmatch(name) for name in weights)


def new_name(name: str, decoder_order: tuple[str, str]) -> str:
    """Return the name of a tensor in mmsegmentation 1.x and mmdetection 3.x; unchanged names are returned as they are.

    Args:
        decoder_order: what the attentions 0 and 1 of a decoder layer are: `MASK2FORMER_ORDER` or `MASKFORMER_ORDER`.
    """
    found = _LAYER.fullmatch(name)
    if found is None:
        return name
    order = decoder_order if found["part"] == "transformer_decoder" else ("self_attn",)
    kinds = order if found["kind"] == "attentions" else ("ffn",)
    index = int(found["index"])
    return f"{found['stack']}.{kinds[index]}.{found['rest']}" if index < len(kinds) else name


def with_new_names(
    weights: Mapping[str, torch.Tensor], decoder_order: tuple[str, str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Rename all tensors; also return the names of unused ones, which are dropped.

    Raises:
        IncompatibleError: two tensors get one name.
    """
    renamed: dict[str, torch.Tensor] = {}
    unused = []
    for name, tensor in weights.items():
        if _UNUSED.fullmatch(name):
            unused.append(name)
            continue
        new = new_name(name, decoder_order)
        if new in renamed:
            raise IncompatibleError(
                f"two tensors map to the name {new}, one of them {name}",
                "The file mixes old and new names; save it again with one naming",
            )
        renamed[new] = tensor
    return renamed, unused
