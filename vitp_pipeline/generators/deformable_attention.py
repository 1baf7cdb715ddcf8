"""The sampling core of multi-scale deformable attention in plain torch, for any device.

Deformable DETR (Zhu et al. 2021, arXiv 2010.04159, eq. 3): every query looks at a few fractional positions of
every level of a feature pyramid, and its answer is the weighted sum of the bilinear samples found there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def multi_scale_deformable_attn(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Sample every level at the given places and sum the samples by weight.

    Args:
        value: (B, S, M, D) features of M heads, the levels one after the other, each in row-major order.
        value_spatial_shapes: (L, 2) integers, (height, width) per level; the products sum to S.
        sampling_locations: (B, N, M, L, P, 2) as (x, y), 0 the left or top border of the level's outermost
            pixels and 1 the right or bottom border, so that a pixel centre lies at (index + 0.5) / length.
            Beyond the borders the features are zero.
        attention_weights: (B, N, M, L, P).
    Returns:
        (B, N, M * D) in the dtype of `value`.
    """
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    sizes = [(int(height), int(width)) for height, width in value_spatial_shapes.tolist()]

    # Heads join the batch: grid_sample wants one grid per image, and every head has its own.
    planes = value.permute(0, 2, 3, 1).reshape(batch * heads, channels, -1)
    grids = (sampling_locations.to(value.dtype) * 2 - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(value.dtype).transpose(1, 2).flatten(0, 1)

    # Level by level, so that only one level's (B·M, D, N, P) samples are alive.
    total = value.new_zeros(batch * heads, channels, queries)
    plane_per_level = planes.split([height * width for height, width in sizes], dim=-1)
    for level, (plane, size) in enumerate(zip(plane_per_level, sizes, strict=True)):
        samples = F.grid_sample(
            plane.unflatten(-1, size),
            grids[:, :, level].reshape(batch * heads, queries, points, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        total = total + (samples * weights[:, None, :, level]).sum(-1)
    return total.reshape(batch, heads * channels, queries).transpose(1, 2).contiguous()
