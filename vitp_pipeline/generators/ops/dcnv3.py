"""DCNv3, the deformable convolution of InternImage (Wang et al. 2023, arXiv 2211.05778, eq. 2).

Each output pixel and channel group samples K·K fractional positions around itself, moved by learned offsets, and sums
them with learned weights that sum to one. Tensors are channels-last, (N, H, W, C).

The kernel's points run column by column: point p = i·K + j lies i columns and j rows into the kernel. Published weights
also load into an operator that runs row by row, without an error, and give wrong results.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vitp_pipeline.generators.ops.bilinear import weighted_samples

NORM_EPS = 1e-6
IM2COL_STEP = 256  # images that the compiled operator takes at once


def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    groups: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    offset_scale: float = 1.0,
) -> torch.Tensor:
    """Sample and sum as DCNv3 does, in plain torch: forward and backward, in bounded memory.

    Args:
        value: (N, H, W, C); channel c belongs to group c // (C / groups). Beyond the image it is zero.
        offset: (N, H', W', groups·K·K·2): per group and point (x, y) in pixels, before `offset_scale`.
        mask: (N, H', W', groups·K·K): the weight of each group's points.
        kernel: K.
        offset_scale: factor on the offsets and on the kernel's own grid.
    Returns:
        (N, H', W', C) in the dtype of `value`. Places and sums are float32, or float64 where `value` is.
    Raises:
        ValueError: the arguments do not match each other.
    """
    batch, height, width, channels = value.shape
    points = kernel * kernel
    rows, columns = (_length(side, kernel, stride, padding, dilation) for side in (height, width))
    expected = [(batch, rows, columns, groups * points * 2), (batch, rows, columns, groups * points)]
    if channels % groups or [offset.shape, mask.shape] != expected:
        raise ValueError(
            f"value {tuple(value.shape)} in {groups} groups wants offset and mask of {expected[0]} and {expected[1]}, "
            f"not {tuple(offset.shape)} and {tuple(mask.shape)}"
        )
    exact = torch.promote_types(value.dtype, torch.float32)
    own = _kernel_places(rows, columns, kernel, stride, padding, dilation, offset_scale).to(value.device, exact)
    places = offset.to(exact).reshape(batch, rows, columns, groups, points, 2) * offset_scale + own
    sums = weighted_samples(
        value.reshape(batch, height * width, groups, channels // groups),
        [(height, width)],
        places.flatten(1, 2).unsqueeze(3),
        mask.reshape(batch, rows * columns, groups, 1, points),
    )
    return sums.reshape(batch, rows, columns, channels)


def _length(side: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _kernel_places(
    rows: int, columns: int, kernel: int, stride: int, padding: int, dilation: int, offset_scale: float
) -> torch.Tensor:
    """Make the sampling grid without offsets, (H', W', 1, K·K, 2), as (x, y) in pixels of the input."""
    half = dilation * (kernel - 1) // 2
    step = (torch.arange(kernel) * dilation - half) * offset_scale
    grid = torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1).reshape(1, 1, 1, -1, 2)  # x is the slow one
    y = torch.arange(rows) * stride - padding + half
    x = torch.arange(columns) * stride - padding + half
    center = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    return center[:, :, None, None] + grid


@cache
def compiled_operator() -> Any:
    """Import the module `DCNv3` that InternImage's authors publish; None if that fails."""
    try:
        return importlib.import_module("DCNv3")
    except ImportError:  # absent, or built for another torch
        return None


def dcnv3_compiled(
    operator: Any,
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    groups: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    offset_scale: float = 1.0,
) -> torch.Tensor:
    """Compute `dcnv3` by the compiled operator: CUDA only, forward only."""
    exact = torch.promote_types(value.dtype, torch.float32)
    tensors = [tensor.to(exact).contiguous() for tensor in (value, offset, mask)]
    twice = [setting for setting in (kernel, stride, padding, dilation) for _ in "hw"]
    step = min(len(value), IM2COL_STEP)
    remove_center = [False] if _version_takes_remove_center() else []
    sums: torch.Tensor = operator.dcnv3_forward(
        *tensors, *twice, groups, value.shape[-1] // groups, offset_scale, step, *remove_center
    )
    return sums.to(value.dtype)


def _version_takes_remove_center() -> bool:
    try:
        version = importlib.metadata.version("DCNv3")
    except importlib.metadata.PackageNotFoundError:  # built in place
        return False
    return tuple(int(part) for part in version.split(".")[:2]) > (1, 0)


class ToChannelsFirst(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)


class ToChannelsLast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


def layer_norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=NORM_EPS)


class DCNv3(nn.Module):
    """The operator with its input layers; parameters have the published names.

    Offsets, weights and the center's gate come from a depthwise convolution of the input; what is sampled is a
    projection of the input.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel: int = 3,
        dw_kernel_size: int | None = None,
        offset_scale: float = 1.0,
        center_feature_scale: bool = False,
        use_compiled: bool = True,
    ) -> None:
        """
        Args:
            dw_kernel_size: of the depthwise convolution; None: `kernel`.
            center_feature_scale: blend the result with the pixel's own value, by a learned gate per group.
            use_compiled: run the authors' operator on CUDA if it can be imported and no gradients are needed.
        """
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be split into {groups} groups")
        self.groups, self.kernel, self.offset_scale = groups, kernel, offset_scale
        self.use_compiled = use_compiled
        size = dw_kernel_size or kernel
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, size, padding=(size - 1) // 2, groups=channels),
            nn.Sequential(ToChannelsLast(), layer_norm(channels)),
            nn.GELU(),
        )
        self.offset = nn.Linear(channels, groups * kernel * kernel * 2)
        self.mask = nn.Linear(channels, groups * kernel * kernel)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(groups, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize to the regular grid with equal weights."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) to the same."""
        value = self.input_proj(x)
        around = self.dw_conv(x.permute(0, 3, 1, 2))
        offset = self.offset(around)
        mask = self.mask(around).unflatten(-1, (self.groups, -1)).softmax(-1).flatten(-2)
        operator = compiled_operator() if self._may_use_compiled(value) else None
        sample = dcnv3 if operator is None else partial(dcnv3_compiled, operator)
        padding = (self.kernel - 1) // 2
        sums = sample(value, offset, mask, self.groups, self.kernel, padding=padding, offset_scale=self.offset_scale)
        if self.center_feature_scale:
            logits = F.linear(around, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias)
            gate = logits.sigmoid().repeat_interleave(x.shape[-1] // self.groups, dim=-1)
            sums = sums * (1 - gate) + value * gate
        projected: torch.Tensor = self.output_proj(sums)
        return projected

    def _may_use_compiled(self, value: torch.Tensor) -> bool:
        return self.use_compiled and value.is_cuda and not (torch.is_grad_enabled() and value.requires_grad)
