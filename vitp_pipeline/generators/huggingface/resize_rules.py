"""Identify a detectron2 model from its tensors, and its rule for resizing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor
from transformers import ConvNextConfig, DinatConfig, Mask2FormerConfig, OneFormerConfig, PreTrainedConfig, SwinConfig

from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.generators.huggingface.backbones import STAGES, InternImageConfig
from vitp_pipeline.generators.huggingface.detectron2_names import OTHER_MODEL, Layout
from vitp_pipeline.generators.huggingface.published_files import SAY_DILATIONS

_SIGNS = {  # a tensor that only this backbone has
    "swin": "backbone.layers.0.blocks.0.attn.relative_position_bias_table",
    "convnext": "backbone.downsample_layers.0.0.weight",
    "dinat": "backbone.levels.0.blocks.0.attn.rpb",
    "internimage": "backbone.levels.0.blocks.0.dcn.offset.weight",
}
_PREDICTOR = "sem_seg_head.predictor."
_PIXEL_DECODER = "sem_seg_head.pixel_decoder."
_SAMPLES = 12
"""Places a head of the deformable attention looks at: 3 levels × 4 points in every published model."""


def backbone_of(state: Mapping[str, Tensor]) -> str:
    """Identify the backbone, a key of `detectron2_names.BACKBONES`. Raises IncompatibleError for any other."""
    for backbone, sign in _SIGNS.items():
        if sign in state:
            return backbone
    raise IncompatibleError(
        "its backbone is not one that can be converted", hint=f"These can: {', '.join(sorted(_SIGNS))}"
    )


def check_layout(state: Mapping[str, Tensor], layout: Layout | None) -> Layout:
    """Return the model that the tensors belong to.

    Args:
        layout: None = any.
    Raises:
        IncompatibleError: they belong to the other of the two models, or to neither.
    """
    has = {
        Layout.oneformer: "task_mlp.layers.0.weight" in state,
        Layout.mask2former: f"{_PREDICTOR}query_feat.weight" in state,
    }
    others = [other for other in Layout if has[other]]
    if layout is None:
        if not others:
            raise IncompatibleError("holds no OneFormer or Mask2Former of detectron2", hint=OTHER_MODEL)
        return others[0]
    if not has[layout]:
        raise IncompatibleError(
            f"holds no {layout.removesuffix('-d2')} of detectron2",
            hint=f"Use --as {others[0]}" if others else OTHER_MODEL,
        )
    return layout


def config_of(
    state: Mapping[str, Tensor], layout: Layout, dilations: Sequence[Sequence[int]] | None = None
) -> PreTrainedConfig:
    """Infer the configuration of a model from its tensors, which `state` has under their detectron2 names.

    Args:
        dilations: of DiNAT, a list per level; its tensors do not contain them.
    Raises:
        IncompatibleError: a tensor is missing that would tell, or the dilations do not fit.
    """
    sizes = _Sizes(state)
    width = sizes.rows(f"{_PIXEL_DECODER}input_proj.0.0.weight")
    common = {
        "backbone_config": _BACKBONES[backbone_of(state)](sizes, dilations),
        "num_labels": sizes.rows(f"{_PREDICTOR}class_embed.weight") - 1,
        "num_queries": sizes.rows(f"{_PREDICTOR}query_embed.weight"),
        "hidden_dim": sizes.columns(f"{_PREDICTOR}query_embed.weight"),
        "num_attention_heads": sizes.rows(
            f"{_PIXEL_DECODER}transformer.encoder.layers.0.self_attn.attention_weights.bias"
        )
        // _SAMPLES,
        "encoder_layers": sizes.count(f"{_PIXEL_DECODER}transformer.encoder.layers.#.norm1.weight"),
        "encoder_feedforward_dim": sizes.rows(f"{_PIXEL_DECODER}transformer.encoder.layers.0.linear1.weight"),
        # one more than there are layers: the prediction before the first counts
        "decoder_layers": 1 + sizes.count(f"{_PREDICTOR}transformer_ffn_layers.#.norm.weight"),
        "dim_feedforward": sizes.rows(f"{_PREDICTOR}transformer_ffn_layers.0.linear1.weight"),
        "dropout": 0.0,
    }
    mask_width = sizes.rows(f"{_PIXEL_DECODER}mask_features.weight")
    if layout is Layout.mask2former:
        return Mask2FormerConfig(**common, feature_size=width, mask_feature_size=mask_width)
    return OneFormerConfig(
        **common,
        conv_dim=width,
        mask_dim=mask_width,
        query_dec_layers=sizes.count(f"{_PREDICTOR}class_transformer.decoder.layers.#.norm1.weight"),
        task_seq_len=sizes.columns("task_mlp.layers.0.weight"),
        is_training=False,
    )


class _Sizes:
    """Questions to the shapes of a state dict."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.state:
            raise IncompatibleError(f"lacks {name}", OTHER_MODEL)
        return tuple(self.state[name].shape)

    def rows(self, name: str) -> int:
        return self.shape(name)[0]

    def columns(self, name: str) -> int:
        return self.shape(name)[1]

    def count(self, pattern: str) -> int:
        """Count the tensors whose name has a number in place of `#`."""
        name = re.compile(re.escape(pattern).replace(r"\#", r"\d+"))
        return sum(name.fullmatch(given) is not None for given in self.state)

    def depths(self, pattern: str) -> list[int]:
        """Count the blocks of each of the four levels; `pattern` has two `#`, level and block."""
        return [self.count(pattern.replace("#", str(level), 1)) for level in range(4)]


def _swin(sizes: _Sizes, _: Any) -> SwinConfig:
    depths = sizes.depths("backbone.layers.#.blocks.#.norm1.weight")
    tables = [
        sizes.shape(f"backbone.layers.{level}.blocks.0.attn.relative_position_bias_table")
        for level in range(len(depths))
    ]
    width = sizes.rows("backbone.patch_embed.proj.weight")
    return SwinConfig(
        embed_dim=width,
        depths=depths,
        num_heads=[heads for _, heads in tables],
        window_size=(isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=sizes.rows("backbone.layers.0.blocks.0.mlp.fc1.weight") / width,
        drop_path_rate=0.0,
        out_features=STAGES,
    )


def _convnext(sizes: _Sizes, _: Any) -> ConvNextConfig:
    return ConvNextConfig(
        depths=sizes.depths("backbone.stages.#.#.gamma"),
        hidden_sizes=[sizes.rows(f"backbone.stages.{stage}.0.gamma") for stage in range(4)],
        out_features=STAGES,
    )


def _dinat(sizes: _Sizes, dilations: Sequence[Sequence[int]] | None) -> DinatConfig:
    depths = sizes.depths("backbone.levels.#.blocks.#.norm1.weight")
    if dilations is None or [len(level) for level in dilations] != depths:
        given = "" if dilations is None else f", not {[len(level) for level in dilations]}"
        raise IncompatibleError(f"its DiNAT needs dilations for {depths} blocks a level{given}", hint=SAY_DILATIONS)
    width = sizes.rows("backbone.patch_embed.norm.weight")
    return DinatConfig(
        embed_dim=width,
        depths=depths,
        num_heads=[sizes.rows(f"backbone.levels.{level}.blocks.0.attn.rpb") for level in range(4)],
        kernel_size=(sizes.columns("backbone.levels.0.blocks.0.attn.rpb") + 1) // 2,
        dilations=[list(level) for level in dilations],
        mlp_ratio=sizes.rows("backbone.levels.0.blocks.0.mlp.fc1.weight") / width,
        drop_path_rate=0.0,
        out_features=STAGES,
    )


def _internimage(sizes: _Sizes, _: Any) -> InternImageConfig:
    """InternImage-H and what is built like it: no tensor tells the `offset_scale` of the smaller ones."""
    block = "backbone.levels.0.blocks.0."
    for name in (f"{block}dcn.center_feature_scale_proj_weight", f"{block}res_post_norm1.0.weight"):
        if name not in sizes.state:
            raise IncompatibleError(
                f"lacks {name}: of InternImage only the huge one is known in OneFormer", OTHER_MODEL
            )
    width = sizes.rows("backbone.patch_embed.norm2.1.weight")
    depths = sizes.depths("backbone.levels.#.blocks.#.norm1.0.weight")
    extra_norms = sizes.count("backbone.levels.2.post_norms.#.0.weight")
    return InternImageConfig(
        channels=width,
        depths=depths,
        groups=[
            sizes.rows(f"backbone.levels.{level}.blocks.0.dcn.center_feature_scale_proj_bias") for level in range(4)
        ],
        mlp_ratio=sizes.rows(f"{block}mlp.fc1.weight") / width,
        res_post_norm=True,
        dw_kernel_size=sizes.shape(f"{block}dcn.dw_conv.0.weight")[-1],
        level2_post_norm=extra_norms > 0,
        level2_post_norm_block_ids=[6 * number + 5 for number in range(extra_norms)],  # 5, 11, 17, …
        center_feature_scale=True,
        out_features=STAGES,
    )


_BACKBONES = {"swin": _swin, "convnext": _convnext, "dinat": _dinat, "internimage": _internimage}
