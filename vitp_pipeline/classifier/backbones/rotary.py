"""Rotary positions of tokens between patches.

timm rotates queries and keys of a patch by angles linear in its position, so the angles of a point are computed alike.
Tokens without a position (class token, registers, mask tokens) are not rotated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from torch import Tensor, nn

from vitp_pipeline.geometry import Size


def knows_rotary(rope: nn.Module) -> bool:
    """Tell whether `rotations` can place points for a rotary embedding of timm."""
    axial = isinstance(rope, RotaryEmbeddingCat) and getattr(rope, "grid_type", "index") == "index"
    dino = isinstance(rope, RotaryEmbeddingDinoV3) and rope.normalize_coords == "separate"
    return axial or dino or isinstance(rope, RotaryEmbeddingMixed)


def rotations(rope: nn.Module, grid: Size, points: Tensor | None, unplaced: int) -> Iterator[Tensor]:
    """Yield, for one block after the other, the rotations of the tokens [points; unplaced; patches].

    Args:
        rope: a module that `knows_rotary`.
        grid: (rows, columns) of the P patches.
        points: (B, N, 2) float (row, col) in [−1, 1], −1 and 1 being the image's edges; None = there are none.
        unplaced: U, tokens without a place.
    Yields:
        (B, 1 or heads, N + U + P, 2·d) float32, the sines and then the cosines of d angles; B = 1 without points.
    """
    device = next(t for t in (points, *rope.parameters(), *rope.buffers()) if t is not None).device
    rows, cols = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    patches = _coordinates(rope, grid, torch.cartesian_prod(rows, cols).view(1, -1, 2))
    parts = [patches.new_zeros(1, unplaced, 2), patches]
    if points is not None:
        cells = points.to(torch.promote_types(points.dtype, torch.float32))
        cells = (cells + 1) / 2 * cells.new_tensor(grid) - 0.5
        parts = [_coordinates(rope, grid, cells), *(part.expand(points.shape[0], -1, -1) for part in parts)]
    places = torch.cat(parts, dim=1)
    if not isinstance(rope, RotaryEmbeddingMixed):
        table = _table(_axial_angles(rope, places)[:, None], getattr(rope, "rotate_half", False))
        while True:
            yield table
    for row, col in rope.freqs.to(places.dtype).transpose(0, 1):  # a block's, (heads, d/2) each
        angles = places[:, None, :, :1] * row[:, None] + places[:, None, :, 1:] * col[:, None]
        yield _table(angles, half=False)


def _coordinates(rope: nn.Module, grid: Size, cells: Tensor) -> Tensor:
    """Turn places in patches, the first patch's center being (0, 0), into what the frequencies are multiplied with."""
    sides = cells.new_tensor(grid)
    if isinstance(rope, RotaryEmbeddingDinoV3):
        cells = (cells + 0.5 + rope.grid_offset) / sides * 2 - 1
    elif isinstance(rope, RotaryEmbeddingCat):
        cells = cells + rope.grid_offset
        if rope.ref_feat_shape is not None:
            cells = cells / sides * cells.new_tensor(rope.ref_feat_shape)
    return cells.flip(-1) if rope.grid_indexing == "xy" else cells


def _axial_angles(rope: nn.Module, places: Tensor) -> Tensor:
    """Give (B, T, d/2) angles, one axis after the other."""
    if isinstance(rope, RotaryEmbeddingDinoV3):
        return (2 * math.pi * places[..., None] / rope.get_buffer("periods")).flatten(-2)
    return (places[..., None] * rope.get_buffer("bands")).flatten(-2)


def _table(angles: Tensor, half: bool) -> Tensor:
    """Give (..., d/2) angles as timm wants them, (..., 2·d): each twice, in halves or side by side."""
    twice = torch.cat([angles, angles], dim=-1) if half else angles.repeat_interleave(2, dim=-1)
    return torch.cat([twice.sin(), twice.cos()], dim=-1)
