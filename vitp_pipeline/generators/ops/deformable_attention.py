"""The sampling core of multi-scale deformable attention in plain torch, for any device.

Deformable DETR (Zhu et al. 2021, arXiv 2010.04159, eq. 3): every query samples a few fractional positions of
every level of a feature pyramid; its output is the weighted sum of the bilinear samples.
"""

from __future__ import annotations

import torch

from vitp_pipeline.generators.ops.bilinear import weighted_samples


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
            pixels and 1 the right or bottom border, so that a pixel center lies at (index + 0.5) / length.
            Beyond the borders the features are zero.
        attention_weights: (B, N, M, L, P).
    Returns:
        (B, N, M * D) in the dtype of `value`.
    """
    sizes = [(height, width) for height, width in value_spatial_shapes.tolist()]
    exact = torch.promote_types(sampling_locations.dtype, torch.float32)
    lengths = value_spatial_shapes.flip(-1).to(sampling_locations.device, exact)[:, None]  # (L, 1, 2) as (x, y)
    places = sampling_locations.to(exact) * lengths - 0.5
    return weighted_samples(value, sizes, places, attention_weights).flatten(2)
