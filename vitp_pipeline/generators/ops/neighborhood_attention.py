"""Dilated neighborhood attention with relative position bias in plain torch, for any device.

NAT and DiNAT (Hassani et al. 2023, arXiv 2204.07143; Hassani and Shi 2022, arXiv 2209.15001),
as in SHI-Labs/NATTEN. Every cell of a map attends to the K × K cells around it that lie d apart. Near a border the
window shifts inward and keeps its K × K cells, so the cell is then not in its middle.

An axis with dilation d is d undilated ones, interleaved. In each, a tile of neighboring queries needs few more keys
than one query, so each tile is a small dense attention with a bias, for which torch has fused kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 8
"""Longest side of a tile of queries, in cells. 6 is as fast; 4 and 12 are not (benchmarks/neighborhood.py)."""

_NUMBERS_AT_ONCE = 1 << 22
"""Most numbers in the gathered keys, and in the scores should a kernel keep them."""


def dilated_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int = 1
) -> Tensor:
    """Compute softmax(q·kᵀ / √c + bias) · v over the window of every cell.

    Args:
        query, key, value: (B, H, W, heads, c), floating, on one device; H and W at least `kernel_size · dilation`
            (`pad_to_window` sees to it).
        bias: (heads, 2K − 1, 2K − 1); entry [h, K − 1 + a, K − 1 + b] is for the key a rows below and b columns right
            of the query, counted in steps of `dilation`.
        kernel_size: K, odd.
        dilation: d, in cells.
    Returns:
        (B, H, W, heads, c). Extra memory: the tiles' indices, and the keys of a bounded number of tiles.
    Raises:
        ValueError: an even kernel, another shape of bias, or a map smaller than the window.
    """
    _check(query, bias, kernel_size, dilation)
    if query.is_cuda and natten_functions() is not None:
        return natten_attention(query, key, value, bias, kernel_size, dilation)
    return tiled_attention(query, key, value, bias, kernel_size, dilation)


def pad_to_window(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Pad `x` (B, H, W, C) with zeros right and below to at least one window, K·d, each way; they are not masked."""
    window = kernel_size * dilation
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, max(0, window - width), 0, max(0, window - height)))


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int, tile: int = TILE
) -> Tensor:
    """Compute `dilated_attention` in plain torch, for tiles of at most `tile` × `tile` queries at once."""
    batch, height, width, heads, channels = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    queries, keys, values = (x.reshape(batch * height * width, heads * channels) for x in (query, key, value))
    answers = out.view(batch * height * width, heads * channels)
    # Index −1 stands for "outside of the window": the last row and column forbid.
    bias = F.pad(bias.to(query.dtype), (0, 1, 0, 1), value=float("-inf"))
    images = torch.arange(batch, device=query.device)[:, None, None] * (height * width)

    def cells(rows: Tensor, columns: Tensor) -> Tensor:
        """Return flat indices (tiles, cells of a tile) of every tile of rows crossed with every tile of columns."""
        rows, columns = rows.to(query.device), columns.to(query.device)
        grid = rows[:, None, :, None] * width + columns[None, :, None, :]
        return (images + grid.flatten(2).flatten(0, 1)).flatten(0, 1)

    def gathered(source: Tensor, index: Tensor) -> Tensor:
        return source.index_select(0, index.flatten()).view(*index.shape, heads, channels).transpose(1, 2)

    for rows in _tiles(height, kernel_size, dilation, tile):
        for columns in _tiles(width, kernel_size, dilation, tile):
            of_queries = cells(rows.queries, columns.queries)
            of_keys = cells(rows.keys, columns.keys)
            vertical, horizontal = rows.offsets.to(query.device), columns.offsets.to(query.device)
            mask = bias[:, vertical[:, None, :, None], horizontal[None, :, None, :]]
            mask = mask.flatten(3).flatten(1, 2)[None]  # (1, heads, queries of a tile, keys of a tile)
            numbers = heads * of_keys.shape[1] * max(channels, of_queries.shape[1])
            step = max(1, _NUMBERS_AT_ONCE // numbers)
            for some, around in zip(of_queries.split(step), of_keys.split(step), strict=True):
                answer = F.scaled_dot_product_attention(
                    gathered(queries, some), gathered(keys, around), gathered(values, around), attn_mask=mask
                )
                answers.index_copy_(0, some.flatten(), answer.transpose(1, 2).flatten(2).flatten(0, 1))
    return out


@dataclass(frozen=True)
class _Tiles:
    """Tiles of one axis with the same window offsets.

    Attributes:
        queries: (tiles, t) cells of each tile.
        keys: (tiles, u) cells that the windows of a tile cover together.
        offsets: (t, u) place of a key in the bias, key − query + K − 1; −1 where it is outside the query's window.
    """

    queries: Tensor
    keys: Tensor
    offsets: Tensor


@lru_cache(maxsize=256)
def _tiles(length: int, kernel_size: int, dilation: int, tile: int) -> tuple[_Tiles, ...]:
    """Cut an axis of `length` cells into tiles; together they hold every cell once."""
    found = []
    # Of the d interleaved axes the first few may be one cell longer than the others.
    longer = length % dilation
    for first, last in ((0, longer), (longer, dilation)):
        if first < last:
            count = -(-(length - first) // dilation)
            interleaved = torch.arange(first, last)[:, None, None]
            for starts, key_starts, offsets in _cut(count, kernel_size, tile):
                queries, keys = (
                    (interleaved + dilation * (begin[:, None] + torch.arange(many))).flatten(0, 1)
                    for begin, many in zip((starts, key_starts), offsets.shape, strict=True)
                )
                found.append(_Tiles(queries, keys, offsets))
    return tuple(found)


def _cut(length: int, kernel_size: int, tile: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Cut an undilated axis into tiles, grouped by equal offsets: first query of each, first key of each, offsets."""
    if length < tile + kernel_size:  # a tile's keys would be all there are: one tile
        tile = length
    tile = -(-length // -(-length // tile))  # of equal length, so that the last is not a sliver
    alike: dict[tuple[int, ...], tuple[list[int], list[int], Tensor]] = {}
    for start in range(0, length, tile):
        queries = torch.arange(start, min(start + tile, length))
        windows = (queries - kernel_size // 2).clamp(0, length - kernel_size)
        begin, end = int(windows[0]), int(windows[-1]) + kernel_size
        keys = torch.arange(begin, end)
        inside = (keys >= windows[:, None]) & (keys < windows[:, None] + kernel_size)
        offsets = torch.where(inside, keys - queries[:, None] + kernel_size - 1, -1)
        kind = (*offsets.shape, *offsets.flatten().tolist())
        starts, key_starts, _ = alike.setdefault(kind, ([], [], offsets))
        starts.append(start)
        key_starts.append(begin)
    return [(torch.tensor(starts), torch.tensor(key_starts), offsets) for starts, key_starts, offsets in alike.values()]


@lru_cache(maxsize=1)
def natten_functions() -> tuple[Any, Any] | None:
    """Import natten's scores-with-bias and weighted sum (up to 0.17.4); None without them."""
    try:
        from natten.functional import natten2dav, natten2dqkrpb
    except ImportError:
        return None
    return natten2dqkrpb, natten2dav


def natten_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int
) -> Tensor:
    """Compute `dilated_attention` by natten's kernels, which keep the (B, heads, H, W, K²) scores."""
    functions = natten_functions()
    if functions is None:
        raise ModuleNotFoundError("natten with relative position bias (up to 0.17.4) is not installed", name="natten")
    scores_with_bias, weighted_sum = functions
    heads_first = [x.permute(0, 3, 1, 2, 4).contiguous() for x in (query * query.shape[-1] ** -0.5, key, value)]
    scores = scores_with_bias(*heads_first[:2], bias.to(query.dtype), kernel_size, dilation)
    sums: Tensor = weighted_sum(scores.softmax(-1), heads_first[2], kernel_size, dilation)
    return sums.permute(0, 2, 3, 1, 4)


def _check(query: Tensor, bias: Tensor, kernel_size: int, dilation: int) -> None:
    _, height, width, heads, _ = query.shape
    if kernel_size % 2 == 0:
        raise ValueError(f"the kernel must be odd, not {kernel_size}")
    if tuple(bias.shape) != (heads, 2 * kernel_size - 1, 2 * kernel_size - 1):
        raise ValueError(f"bias is {tuple(bias.shape)}, for {heads} heads and a kernel of {kernel_size}")
    if min(height, width) < kernel_size * dilation:
        raise ValueError(f"a map of {height}×{width} is smaller than the window, {kernel_size}·{dilation}")
