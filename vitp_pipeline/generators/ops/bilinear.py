"""Weighted sums of bilinear samples, in plain torch for any device.

Deformable attention and deformable convolution both sample a few fractional positions of feature maps, per output
position and head (or group), and add up what they find by weight. A bilinear sample is itself a weighted sum of four
pixels, so the whole is one weighted sum of rows of a table of pixels: what `embedding_bag` computes without ever
holding the samples. It takes a fifth of `grid_sample`'s time on a CPU and no coordinate is rounded to [−1, 1] first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Positions × heads × points of a chunk. Some 100 bytes each: neither large nor so few that calls dominate.
SAMPLES_AT_ONCE = 1 << 18


def weighted_samples(
    value: torch.Tensor, sizes: Sequence[tuple[int, int]], places: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum bilinear samples of every level by weight; samples outside the maps are zero.

    Besides a padded copy of `value` and twice the result, memory is bounded, also in the backward pass.

    Args:
        value: (B, S, M, D) features of M heads, the levels one after the other, each in row-major order.
        sizes: (height, width) per level; the products sum to S.
        places: (B, N, M, L, P, 2) as (x, y) in pixels of the level; pixel centers are integers.
        weights: (B, N, M, L, P).
    Returns:
        (B, N, M, D) in the dtype of `value`; the sum is taken in float32, or in float64 if `value` is.
    """
    batch, _, heads, channels = value.shape
    positions = places.shape[1]
    exact = torch.promote_types(value.dtype, torch.float32)
    table, starts = _with_borders(value.to(exact), sizes)
    pixels = table.shape[1]
    first = starts.to(value.device, torch.int32)[:, None] * heads
    first = first + torch.arange(heads, dtype=torch.int32, device=value.device)[:, None, None]  # (M, L, 1)
    images = torch.arange(batch, dtype=torch.int32, device=value.device) * (pixels * heads)
    images = images.repeat_interleave(positions)  # (B·N,): where the image of a position begins
    table = table.reshape(-1, channels)

    samples = places.shape[2] * places.shape[3] * places.shape[4]
    rows = max(1, SAMPLES_AT_ONCE // samples)
    learns = torch.is_grad_enabled() and (value.requires_grad or places.requires_grad or weights.requires_grad)
    pieces = zip(images.split(rows), places.flatten(0, 1).split(rows), weights.flatten(0, 1).split(rows), strict=True)
    sums = []
    for image, place, weight in pieces:
        given = (table, sizes, image[:, None, None, None] + first, place, weight)
        # What a chunk needs for its gradients is made again then, lest all chunks' be kept.
        sums.append(checkpoint(_sum_of_chunk, *given, use_reentrant=False) if learns else _sum_of_chunk(*given))
    return torch.cat(sums).view(batch, positions, heads, channels).to(value.dtype)


def _with_borders(value: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad every level with a border of one zero pixel; also return where each level then starts."""
    levels = value.split([height * width for height, width in sizes], dim=1)
    padded = [
        F.pad(level.unflatten(1, size), (0, 0, 0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for level, size in zip(levels, sizes, strict=True)
    ]
    starts = torch.tensor([0, *(level.shape[1] for level in padded)]).cumsum(0)[:-1]
    return torch.cat(padded, dim=1) if len(padded) > 1 else padded[0], starts


def _sum_of_chunk(
    table: torch.Tensor,
    sizes: Sequence[tuple[int, int]],
    first: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Sum one chunk of R positions: (R, M, D).

    table: (pixels · M, D); first: (R, M, L, 1), the row of each level's first pixel; places and weights as above.
    """
    heads = places.shape[1]
    height, width = torch.tensor(sizes, dtype=torch.int32, device=table.device)[:, :, None].unbind(1)  # each (L, 1)
    place = places.to(table.dtype)
    # Beyond the border all is zero, as it is on the border: nothing needs a mask.
    x = torch.minimum(place[..., 0].clamp(min=-1), width) + 1
    y = torch.minimum(place[..., 1].clamp(min=-1), height) + 1
    with torch.no_grad():
        # Clamped again as integers: a NaN must reach the result, not lead outside of the table.
        column = torch.minimum(x.int().clamp_(min=0), width)
        row = torch.minimum(y.int().clamp_(min=0), height)
        line = (width + 2) * heads
        corner = first + row * line + column * heads
        steps = torch.stack([torch.zeros_like(line), torch.full_like(line, heads), line, line + heads], dim=-1)
        corners = corner[..., None] + steps
    right, below = x - column, y - row
    weights = weights.to(table.dtype)
    lower = weights * below
    upper = weights - lower
    lower_right, upper_right = lower * right, upper * right
    shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-1)
    sums: torch.Tensor = F.embedding_bag(
        corners.flatten(0, 1).flatten(1), table, per_sample_weights=shares.flatten(0, 1).flatten(1), mode="sum"
    )
    return sums.view(-1, heads, table.shape[1])
