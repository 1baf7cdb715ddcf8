"""Additional backbones for transformers' OneFormer and Mask2Former: DiNAT without natten, and InternImage."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor
from transformers import AutoBackbone, AutoConfig, DinatConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from vitp_pipeline.generators.ops.dinat import DinatBackbone

STAGES = ["stage1", "stage2", "stage3", "stage4"]


@lru_cache(maxsize=1)
def register_backbones() -> None:
    """Make transformers build DiNAT with our attention, and register `model_type` "vitp-internimage".

    Its own DiNAT needs an old natten and does not work with later versions.
    """
    AutoBackbone.register(DinatConfig, DinatBackbone, exist_ok=True)
    AutoConfig.register(InternImageConfig.model_type, InternImageConfig)
    AutoBackbone.register(InternImageConfig, InternImageBackbone)


class InternImageConfig(BackboneConfigMixin, PreTrainedConfig):
    """Constructor arguments of InternImage; names and defaults as in OpenGVLab/InternImage."""

    model_type = "vitp-internimage"

    channels: int = 64
    depths: list[int] | tuple[int, ...] = (4, 4, 18, 4)
    groups: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    mlp_ratio: float = 4.0
    offset_scale: float = 1.0
    layer_scale: float | None = None
    post_norm: bool = False
    res_post_norm: bool = False
    dw_kernel_size: int | None = None
    level2_post_norm: bool = False
    level2_post_norm_block_ids: list[int] | tuple[int, ...] | None = None
    center_feature_scale: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = ["stem", *STAGES]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)


SETTINGS = (
    "channels",
    "depths",
    "groups",
    "mlp_ratio",
    "offset_scale",
    "layer_scale",
    "post_norm",
    "res_post_norm",
    "dw_kernel_size",
    "level2_post_norm",
    "level2_post_norm_block_ids",
    "center_feature_scale",
)
"""The fields of `InternImageConfig` that the network's constructor takes."""


class InternImageBackbone(BackboneMixin, PreTrainedModel):
    """Image (B, 3, H, W) → the maps (B, C·2^i, H/4/2^i, W/4/2^i) of its four stages."""

    config_class = InternImageConfig
    base_model_prefix = "internimage"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False

    def __init__(self, config: InternImageConfig) -> None:
        from vitp_pipeline.generators.ops.internimage import InternImage

        super().__init__(config)
        if config.out_features != STAGES:
            raise ValueError(f"InternImage gives the maps of all four stages, not of {config.out_features}")
        self.internimage = InternImage(**{name: getattr(config, name) for name in SETTINGS})
        self.num_features = [config.channels, *(config.channels * 2**stage for stage in range(4))]
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: object) -> BackboneOutput:
        return BackboneOutput(feature_maps=tuple(self.internimage(pixel_values)))
