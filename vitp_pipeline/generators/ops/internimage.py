"""InternImage (Wang et al. 2023, arXiv 2211.05778) as a backbone, under the parameter names of the published files.

All sizes and variants are one trunk with options (`mmseg_custom/models/backbones/intern_image.py` of
OpenGVLab/InternImage); the published settings of the seven sizes are in `SIZES`. Inside, tensors are channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitp_pipeline.generators.ops.dcnv3 import DCNv3, ToChannelsFirst, ToChannelsLast, layer_norm

# As the published segmentation and detection configs have them.
_HUGE: dict[str, Any] = {"dw_kernel_size": 5, "level2_post_norm": True, "center_feature_scale": True}
SIZES: dict[str, dict[str, Any]] = {
    "T": {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32), "layer_scale": 1.0},
    "S": {"channels": 80, "depths": (4, 4, 21, 4), "groups": (5, 10, 20, 40), "layer_scale": 1.0, "post_norm": True},
    "B": {"channels": 112, "depths": (4, 4, 21, 4), "groups": (7, 14, 28, 56), "layer_scale": 1.0, "post_norm": True},
    "L": {
        "channels": 160,
        "depths": (5, 5, 22, 5),
        "groups": (10, 20, 40, 80),
        "layer_scale": 1.0,
        "post_norm": True,
        "offset_scale": 2.0,
    },
    "XL": {
        "channels": 192,
        "depths": (5, 5, 24, 5),
        "groups": (12, 24, 48, 96),
        "layer_scale": 1.0,
        "post_norm": True,
        "offset_scale": 2.0,
    },
    "H": {
        "channels": 320,
        "depths": (6, 6, 32, 6),
        "groups": (10, 20, 40, 80),
        "res_post_norm": True,
        "level2_post_norm_block_ids": (5, 11, 17, 23, 29),
        **_HUGE,
    },
    "G": {
        "channels": 512,
        "depths": (2, 2, 48, 4),
        "groups": (16, 32, 64, 128),
        "post_norm": True,
        "level2_post_norm_block_ids": (5, 11, 17, 23, 29, 35, 41, 47),
        **_HUGE,
    },
}


class InternImage(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32 with C, 2C, 4C and 8C channels."""

    def __init__(
        self,
        core_op: str = "DCNv3",
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        drop_path_type: str = "linear",
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        post_norm: bool = False,
        with_cp: bool = False,
        dw_kernel_size: int | None = None,
        res_post_norm: bool = False,
        level2_post_norm: bool = False,
        level2_post_norm_block_ids: Sequence[int] | None = None,
        center_feature_scale: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        init_cfg: Any = None,
    ) -> None:
        """Take the arguments of the published configs.

        Args:
            core_op: "DCNv3", or "DCNv3_pytorch" to leave the compiled operator aside.
            channels: C.
            layer_scale: initial value of a learned factor per channel before each residual sum; None: no factor.
            offset_scale: see `dcnv3`.
            post_norm: norm after the operators instead of before them.
            with_cp: recompute activations in the backward pass, to save memory.
            res_post_norm: norm before and after; not together with `layer_scale` or `post_norm`.
            level2_post_norm: an extra norm after the blocks `level2_post_norm_block_ids` of the third stage.
            init_cfg: ignored: the published configs name a pre-trained file there.
        Raises:
            ValueError: an option that no published model has.
        """
        super().__init__()
        asked = {"core_op": core_op, "act_layer": act_layer, "norm_layer": norm_layer, "drop_path_type": drop_path_type}
        known = {"core_op": ("DCNv3", "DCNv3_pytorch"), "act_layer": ("GELU",), "norm_layer": ("LN",)}
        known["drop_path_type"] = ("linear", "uniform")
        for name, given in asked.items():
            if given not in known[name]:
                raise ValueError(f"InternImage: {name} '{given}' is not one of {', '.join(known[name])}")
        if len(depths) != len(groups):
            raise ValueError(f"InternImage: {len(depths)} depths and {len(groups)} groups")
        self.out_indices = tuple(out_indices)
        self.patch_embed = Stem(channels)
        self.pos_drop = nn.Dropout(drop_rate)
        total, before = sum(depths), 0
        last = len(depths) - 1
        self.levels = nn.ModuleList()
        for index, (depth, groups_here) in enumerate(zip(depths, groups, strict=True)):
            rates = [
                drop_path_rate * (i / max(total - 1, 1) if drop_path_type == "linear" else 1.0)
                for i in range(before, before + depth)
            ]
            before += depth
            block = {
                "channels": channels * 2**index,
                "groups": groups_here,
                "mlp_ratio": mlp_ratio,
                "drop": drop_rate,
                "layer_scale": layer_scale,
                "post_norm": post_norm,
                "res_post_norm": res_post_norm,
                "dw_kernel_size": dw_kernel_size,
                "offset_scale": offset_scale,
                "center_feature_scale": center_feature_scale,
                "use_compiled": core_op == "DCNv3",
            }
            extra = tuple(level2_post_norm_block_ids or ()) if level2_post_norm and index == 2 else ()
            final_norm = not post_norm or center_feature_scale
            self.levels.append(Stage(block, rates, final_norm, extra, index < last, with_cp))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DCNv3):
                module.reset_parameters()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, H, W) to (N, C·2^s, ⌈H/4·2^s⌉, ⌈W/4·2^s⌉), for every stage s in `out_indices`."""
        x = self.pos_drop(self.patch_embed(images))
        outputs = []
        for index, level in enumerate(self.levels):
            features, x = level(x)
            if index in self.out_indices:
                outputs.append(features.permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)


class Stem(nn.Module):
    """Two convolutions of stride 2. The digits in the norms' published names count the change of layout before them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.Sequential(ToChannelsLast(), layer_norm(channels // 2), ToChannelsFirst())
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.Sequential(ToChannelsLast(), layer_norm(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.norm2(self.conv2(self.act(self.norm1(self.conv1(images)))))
        return features


class Stage(nn.Module):
    """Blocks, then a norm, whose result is the stage's output and the input of the downsampling."""

    def __init__(
        self,
        block: dict[str, Any],
        drop_paths: Sequence[float],
        final_norm: bool,
        post_norm_after: tuple[int, ...],
        downsample: bool,
        with_cp: bool,
    ) -> None:
        super().__init__()
        channels = block["channels"]
        self.post_norm_after = post_norm_after
        self.with_cp = with_cp
        self.blocks = nn.ModuleList(Block(**block, drop_path=rate) for rate in drop_paths)
        self.norm = nn.Sequential(layer_norm(channels)) if final_norm else nn.Identity()
        if post_norm_after:
            self.post_norms = nn.ModuleList(nn.Sequential(layer_norm(channels)) for _ in post_norm_after)
        self.downsample = Downsample(channels) if downsample else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for index, block in enumerate(self.blocks):
            again = self.with_cp and x.requires_grad
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            if index in self.post_norm_after:
                x = self.post_norms[self.post_norm_after.index(index)](x)
        x = self.norm(x)
        return x, x if self.downsample is None else self.downsample(x)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.Sequential(ToChannelsLast(), layer_norm(2 * channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2)))
        return normed


class Block(nn.Module):
    """DCNv3 and an MLP, each with a residual connection; the model's size decides where the norms are."""

    def __init__(
        self,
        channels: int,
        groups: int,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        post_norm: bool = False,
        res_post_norm: bool = False,
        dw_kernel_size: int | None = None,
        offset_scale: float = 1.0,
        center_feature_scale: bool = False,
        use_compiled: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.Sequential(layer_norm(channels))
        self.dcn = DCNv3(
            channels,
            groups,
            dw_kernel_size=dw_kernel_size,
            offset_scale=offset_scale,
            center_feature_scale=center_feature_scale,
            use_compiled=use_compiled,
        )
        self.norm2 = nn.Sequential(layer_norm(channels))
        self.mlp = MLP(channels, int(channels * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        self.post_norm = post_norm
        self.res_post_norm = res_post_norm and not post_norm and layer_scale is None
        self.gamma1, self.gamma2 = (
            None if layer_scale is None else nn.Parameter(torch.full((channels,), float(layer_scale))) for _ in range(2)
        )
        if self.res_post_norm:
            self.res_post_norm1 = nn.Sequential(layer_norm(channels))
            self.res_post_norm2 = nn.Sequential(layer_norm(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for operator, norm, after, gamma in (
            (self.dcn, self.norm1, "res_post_norm1", self.gamma1),
            (self.mlp, self.norm2, "res_post_norm2", self.gamma2),
        ):
            y = norm(operator(x)) if self.post_norm else operator(norm(x))
            if self.res_post_norm:
                y = getattr(self, after)(y)
            x = x + self.drop_path(y if gamma is None else gamma * y)
        return x


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return result


class DropPath(nn.Module):
    """Drop the whole branch of an image at random in training, and scale up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


def register_backbone() -> None:
    """Register the backbone, so that mmseg's and mmdet's configs can use `type="InternImage"`.

    The name goes into mmengine's registry, which both search after their own, so that a backbone of this name that a
    user's `custom_imports` adds to mmseg or mmdet takes precedence.
    """
    from mmengine.registry import MODELS

    if InternImage.__name__ not in MODELS.module_dict:
        MODELS.register_module(module=InternImage)
