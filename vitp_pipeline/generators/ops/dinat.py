"""DiNAT (Hassani and Shi 2022, arXiv 2209.15001) as a backbone of transformers' models, without natten.

transformers' own DiNAT needs an old natten. This one replaces it: same configuration (`DinatConfig`) and parameter
names, so the published files load; the attention is ours. It is for frozen use: no dropout, no drop path.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import DinatConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from vitp_pipeline.generators.ops.neighborhood_attention import dilated_attention, pad_to_window


class DinatBackbone(BackboneMixin, PreTrainedModel):
    """Image (B, 3, H, W) → maps (B, C·2^i, ⌈H/4⌉/2^i, …) of the stages that the configuration names, each normed."""

    config_class = DinatConfig
    base_model_prefix = "dinat"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: DinatConfig) -> None:
        super().__init__(config)
        widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.embeddings = _Stem(config)
        self.encoder = _Encoder(
            _Level(config, width, heads, dilations, last=width == widths[-1])
            for width, heads, dilations in zip(widths, config.num_heads, _dilations(config), strict=True)
        )
        self.num_features = [config.embed_dim, *widths]
        self.hidden_states_norms = nn.ModuleDict(
            {stage: nn.LayerNorm(width) for stage, width in zip(self.out_features, self.channels, strict=True)}
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: object) -> BackboneOutput:
        x = self.embeddings(pixel_values)
        maps = [x] if "stem" in self.out_features else []
        for stage, level in zip(self.stage_names[1:], self.encoder.levels, strict=True):
            features, x = level(x)
            if stage in self.out_features:
                maps.append(features)
        normed = (norm(x) for norm, x in zip(self.hidden_states_norms.values(), maps, strict=True))
        return BackboneOutput(feature_maps=tuple(x.permute(0, 3, 1, 2).contiguous() for x in normed))


def _dilations(config: DinatConfig) -> list[list[int]]:
    """Check the dilations per level and block; wrong values load silently, so at least the lengths must match."""
    lengths = [len(level) for level in config.dilations]
    if lengths != list(config.depths):
        raise ValueError(f"dilations for {lengths} blocks, the levels have {list(config.depths)}")
    return [list(level) for level in config.dilations]


class _Encoder(nn.Module):
    def __init__(self, levels: Iterable[_Level]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)


class _Stem(nn.Module):
    """Two convolutions of stride 2 with nothing between them, then a norm; from here on (B, H, W, C)."""

    def __init__(self, config: DinatConfig) -> None:
        super().__init__()
        width = config.embed_dim
        halves = (
            nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.patch_embeddings = _Holder("projection", nn.Sequential(*halves))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.patch_embeddings(pixel_values).permute(0, 2, 3, 1))
        return normed


class _Level(nn.Module):
    def __init__(self, config: DinatConfig, width: int, heads: int, dilations: list[int], last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(config, width, heads, dilation) for dilation in dilations)
        self.downsample = None if last else _Downsample(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the level's features, and the next level's input."""
        for layer in self.layers:
            x = layer(x)
        return x, x if self.downsample is None else self.downsample(x)


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return normed


class _Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x), each scaled by channel where the configuration says so."""

    def __init__(self, config: DinatConfig, width: int, heads: int, dilation: int) -> None:
        super().__init__()
        hidden = int(config.mlp_ratio * width)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = NeighborhoodAttention(width, heads, config.kernel_size, dilation, config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = _Holder("dense", nn.Linear(width, hidden))
        self.activation = ACT2FN[config.hidden_act]
        self.output = _Holder("dense", nn.Linear(hidden, width))
        start = config.layer_scale_init_value
        self.layer_scale_parameters = nn.Parameter(torch.full((2, width), float(start))) if start > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._scaled(self.attention(self.layernorm_before(x)), 0)
        hidden = self.activation(self.intermediate(self.layernorm_after(x)))
        return x + self._scaled(self.output(hidden), 1)

    def _scaled(self, branch: Tensor, number: int) -> Tensor:
        return branch if self.layer_scale_parameters is None else self.layer_scale_parameters[number] * branch


class NeighborhoodAttention(nn.Module):
    """Projection, dilated neighborhood attention, projection: (B, H, W, C) → (B, H, W, C), of any H and W.

    A map smaller than the window is padded with zeros before the first projection. Padded cells take part, with the
    biases of the projection as their keys and values.
    """

    def __init__(self, width: int, heads: int, kernel_size: int, dilation: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.kernel_size, self.dilation = heads, kernel_size, dilation
        self.self = _Projections(width, heads, kernel_size, qkv_bias)
        self.output = _Holder("dense", nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = pad_to_window(x, self.kernel_size, self.dilation)
        query, key, value = self.self(x)
        answer = dilated_attention(query, key, value, self.self.rpb, self.kernel_size, self.dilation)
        output: Tensor = self.output(answer.flatten(3)[:, :height, :width])
        return output


class _Projections(nn.Module):
    """Query, key and value projections, (B, H, W, heads, C / heads) each, and the relative position bias."""

    def __init__(self, width: int, heads: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * kernel_size - 1, 2 * kernel_size - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(project(x).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value))


class _Holder(nn.Module):
    """A wrapper that adds a level to parameter names, as in the published files."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(self._name)(x)
        return result
