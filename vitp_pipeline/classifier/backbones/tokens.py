"""The parts of a timm ViT's forward between the image and its blocks, so that points can be put in between."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import Tensor

from vitp_pipeline.classifier.backbones.kinds import Vit
from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import Size


def keeps_class_token(vit: Vit) -> bool:
    """Tell whether the class token stays beside the points.

    In a plain ViT points stand in its place (paper §3.3). With rotary positions it has no position that a point
    could take, and the patches of such networks need it beside them.
    """
    return isinstance(vit, Eva)


def prefix_rows(vit: Vit) -> int:
    """Count the rows of the position table before the patches': of the class token (and DeiT's distillation token),
    then of the registers. Some backbones have these tokens without a position.
    """
    return 0 if vit.pos_embed is None or vit.no_embed_class else vit.num_prefix_tokens


def has_class_row(vit: Vit) -> bool:
    """Tell whether the position table has a row of the class token, which a point can start from."""
    return vit.cls_token is not None and prefix_rows(vit) > 0


def patch_positions(vit: Vit, grid: Size, offset: bool) -> Tensor | None:
    """Give the patches' rows (1, P, D) of the position table, or None; `offset` as in `offset_positions`."""
    if vit.pos_embed is None:
        return None
    table: Tensor = vit.pos_embed[:, prefix_rows(vit) :]
    return offset_positions(table, grid) if offset else table


def kept_tokens(vit: Vit, batch: int, with_class: bool) -> list[Tensor]:
    """Give the tokens (B, R, D) that stay before the patches, with their positions; in a list, empty without.

    They are the registers, and before them, `with_class`, the class token and DeiT's distillation token.
    """
    classes = [token for token in (vit.cls_token, getattr(vit, "dist_token", None)) if token is not None]
    tokens = [*classes, *([] if vit.reg_token is None else [vit.reg_token])]
    if not tokens:
        return []
    kept = torch.cat(tokens, dim=1)
    if vit.pos_embed is not None and (rows := prefix_rows(vit)):
        kept = kept + vit.pos_embed[:, :rows]
    kept = kept[:, 0 if with_class else len(classes) :]
    return [kept.expand(batch, -1, -1)] if kept.shape[1] else []


def sample_tokens(patches: Tensor, grid: Size, points: Tensor) -> Tensor:
    """Mix patch tokens at points, bilinearly between patch centers, the border held.

    Args:
        patches: (B, h·w, D) in row-major order.
        grid: (h, w).
        points: (B, N, 2) (row, col) in [−1, 1], −1 and 1 being the image's edges.
    Returns:
        (B, N, D).
    """
    exact = torch.promote_types(patches.dtype, torch.float32)
    planes = patches.to(exact).transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
    where = points.flip(-1)[:, :, None].to(exact)  # grid_sample wants (x, y)
    values = F.grid_sample(planes, where, mode="bilinear", padding_mode="border", align_corners=False)
    return values[..., 0].transpose(1, 2).to(patches.dtype)


def offset_positions(table: Tensor, grid: Size) -> Tensor:
    """Resample a square position table as the released weights were trained: bicubic, scale (grid + 0.1)/side.

    Even at the table's own size the 0.1 shifts what is read (`interpolate_pos_encoding` of DINOv2).

    Args:
        table: (1, side², D), row-major. grid: (h, w).
    Returns:
        (1, h·w, D) in the table's dtype, computed in float32.
    """
    side = round(table.shape[1] ** 0.5)
    planes = table.float().transpose(1, 2).unflatten(2, (side, side))
    factors = [(size + 0.1) / side for size in grid]
    resampled = F.interpolate(planes, scale_factor=factors, mode="bicubic", antialias=False)
    if resampled.shape[-2:] != tuple(grid):
        raise UsageError(
            f"a position table of {side}×{side} cannot be resampled to {grid[0]}×{grid[1]} with the offset"
        )
    return resampled.flatten(2).transpose(1, 2).to(table.dtype)


def offset_table(positions: Tensor, grid: Size, side: int) -> Tensor:
    """Make the square table that `offset_positions` reads as given positions.

    Resampling is linear, by a matrix along rows and one along columns. The table is the plainly resampled one, changed
    by as little as makes it exact; on a grid of more than side × side patches, by least squares.

    Args:
        positions: (1, h·w, D), row-major. grid: (h, w). side: of the table.
    Returns:
        (1, side², D) in the dtype of the positions, computed in float64.
    """
    planes = positions.double().transpose(1, 2).unflatten(2, grid)[0]  # (D, h, w)
    table = F.interpolate(planes[None], size=(side, side), mode="bicubic", antialias=False)[0]
    rows, cols = (_offset_matrix(size, side) for size in grid)
    error = planes - rows @ table @ cols.T
    table = table + torch.linalg.pinv(rows) @ error @ torch.linalg.pinv(cols).T
    found: Tensor = table.flatten(1).T[None].to(positions.dtype)
    return found


def _offset_matrix(size: int, side: int) -> Tensor:
    """(size, side) float64: row i has the weights with which `offset_positions` mixes a line of the table."""
    lines = torch.eye(side, dtype=torch.float64)[None, :, :, None]  # channel k is 1 at place k
    mixed = F.interpolate(lines, scale_factor=[(size + 0.1) / side, 1.0], mode="bicubic", antialias=False)
    return mixed[0, :, :, 0].T
