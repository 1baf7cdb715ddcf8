"""The pixels of an image in blocks that read the same few cells of a mask.

Along an axis, upsampling makes runs of neighboring indices that read the same `reach + 1` source cells: four pixels
between two cells where masks are a quarter of the image. A block is a run of rows by a run of columns. Every pixel of a
block is a convex combination of the block's cells, so what holds for all convex combinations of its cells is known of
the whole block at the masks' own resolution: its values lie between the least and the largest cell (`pooled`). Where
that does not decide, `block_values` makes the pixels of chosen blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.resize import Lerp, lerp

_LEAST_RUN = 2.0  # pixels of a block along an axis on average: with fewer, blocks are no better than pixels


@dataclass(frozen=True)
class Runs:
    """An axis of n_out outputs, in G runs, that reads n_in cells. Run g reads the cells g − 1 … g − 1 + reach, of which
    those outside [0, n_in) mean the nearest inside.

    Attributes:
        cells: n_in.
        reach: cells of a run but one; 1 for one bilinear upsampling.
        run_of: (n_out,) int64, non-decreasing.
        outputs: (G, R) int64 the outputs of every run; shorter runs repeat their last.
        weights: (G, R, reach) float32: an output is first + Σ_j weights[j]·(cell[j + 1] − first), first = cell[0].
    """

    cells: int
    reach: int
    run_of: np.ndarray
    outputs: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.outputs)


def upsampled_runs(view: View, axis: int) -> Runs | None:
    """Return runs from masks to the visible part of the padded frame; None where blocks are not worthwhile."""
    length = view.seen[axis + 2]
    return _runs(view.mask[axis], view.padded[axis], length, length)


def image_runs(view: View, axis: int) -> Runs | None:
    """Return runs from masks to the original image, both resizes in one; None where blocks are not worthwhile or the
    view is not whole.
    """
    if not view.whole:
        return None
    return _runs(view.mask[axis], view.padded[axis], view.resized[axis], view.original[axis])


@lru_cache(maxsize=256)
def _runs(cells: int, padded: int, resized: int, original: int) -> Runs | None:
    first, second = lerp(cells, padded), lerp(resized, original)
    low, high = first.low[second.low], first.high[second.high]
    reach = max(1, int((high - low).max()))
    run_of = np.where(high == 0, 0, low + 1)
    starts = np.flatnonzero(np.diff(run_of, prepend=-1))
    lengths = np.diff(np.append(starts, original))
    if len(starts) != run_of[-1] + 1 or original < _LEAST_RUN * len(starts):
        return None
    outputs = starts[:, None] + np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    made = Runs(cells, reach, run_of, outputs, _weights(first, second, run_of - 1, reach)[outputs])
    for array in (made.run_of, made.outputs, made.weights):
        array.flags.writeable = False
    return made


def _weights(first: Lerp, second: Lerp, start: np.ndarray, reach: int) -> np.ndarray:
    """(n_out, reach) float32 weights of the cells start + 1 … start + reach of two resizes in a row."""
    weights = np.zeros((len(start), reach + 1))
    outputs = np.arange(len(start))
    for middle, share in ((second.low, 1 - second.weight), (second.high, second.weight)):
        for cell, own in ((first.low, 1 - first.weight), (first.high, first.weight)):
            np.add.at(weights, (outputs, cell[middle] - start), share * own[middle])
    return weights[:, 1:].astype(np.float32)


def block_cells(planes: Tensor, rows: Runs, columns: Runs, start: int, stop: int) -> Tensor:
    """The cells of the runs of rows [start, stop) and all runs of columns, the edges repeated where runs reach over.

    Args:
        planes: (C, rows.cells, columns.cells).
    Returns:
        (C, stop − start + rows.reach, len(columns) + columns.reach): block (i, j) reads what begins at [i, j]. A copy
        where edges are repeated.
    """
    planes = _edged(planes, 1, start - 1, stop - 1 + rows.reach)
    return _edged(planes, 2, -1, len(columns) - 1 + columns.reach)


def _edged(planes: Tensor, axis: int, start: int, stop: int) -> Tensor:
    cells = planes.shape[axis]
    parts = [planes.narrow(axis, max(start, 0), min(stop, cells) - max(start, 0))]
    if start < 0:
        parts.insert(0, planes.narrow(axis, 0, 1))
    parts += [planes.narrow(axis, cells - 1, 1)] * (stop - cells)
    return torch.cat(parts, axis) if len(parts) > 1 else parts[0]


def pooled(cells: Tensor, rows: Runs, columns: Runs, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`pick` (torch.minimum or torch.maximum) over the cells of every block.

    Args:
        cells: (C, …) of `block_cells`.
    Returns:
        (C, runs of rows, runs of columns).
    """
    for axis, reach in ((1, rows.reach), (2, columns.reach)):
        length = cells.shape[axis] - reach
        found = cells.narrow(axis, 0, length)
        for offset in range(1, reach + 1):
            found = pick(found, cells.narrow(axis, offset, length))
        cells = found
    return cells


def block_values(
    cells: Tensor,
    rows: Runs,
    columns: Runs,
    row: np.ndarray,
    column: np.ndarray,
    start: int,
    plane: np.ndarray | None = None,
) -> Tensor:
    """The values of the pixels of some blocks.

    Args:
        cells: (C, …) of `block_cells` from run `start` on, contiguous.
        row, column: (n,) int64 runs of the blocks.
        plane: (n,) int64, of which plane each block is wanted; None = of all.
    Returns:
        (C or 1, R rows, R columns, n); as `Runs.outputs`, short runs repeat their last pixel.
    """
    width = cells.shape[2]
    flat, corner = cells.flatten(1), torch.from_numpy((row - start) * width + column)
    if plane is not None:
        flat, corner = cells.reshape(1, -1), corner + torch.from_numpy(plane * flat.shape[1])
    down, across = (
        torch.from_numpy(np.ascontiguousarray(runs.weights[own].transpose(2, 1, 0)))  # (reach, R, n)
        for runs, own in ((rows, row), (columns, column))
    )
    lines = [
        _combined([flat.index_select(1, corner + (i * width + j))[:, None] for j in range(columns.reach + 1)], across)
        for i in range(rows.reach + 1)
    ]
    return _combined([line[:, None] for line in lines], down[:, :, None])


def block_pixels(rows: Runs, columns: Runs, row: np.ndarray, column: np.ndarray, width: int) -> np.ndarray:
    """(R rows, R columns, n) int64: flat indices of the pixels of blocks, in an image of this width."""
    return np.asarray(rows.outputs[row].T[:, None] * width + columns.outputs[column].T[None])


def block_areas(rows: Runs, columns: Runs) -> np.ndarray:
    """(runs of rows, runs of columns) int64 pixels of every block."""
    return np.multiply.outer(np.bincount(rows.run_of), np.bincount(columns.run_of))


def own_pixels(rows: Runs, columns: Runs, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """(R rows, R columns, n) bool: which values of `block_values` are no repetition."""
    down, across = (
        np.arange(runs.outputs.shape[1])[:, None] < np.bincount(runs.run_of)[own]
        for runs, own in ((rows, row), (columns, column))
    )
    return np.asarray(down[:, None] & across[None])


def _combined(cells: list[Tensor], weights: Tensor) -> Tensor:
    """cells[0] + Σ_j weights[j]·(cells[j + 1] − cells[0]): equal cells give exactly their value."""
    first, *others = cells
    out = torch.lerp(first, others[0], weights[0])
    for weight, other in zip(weights[1:], others[1:], strict=True):
        out += weight * (other - first)
    return out


def sole(chosen: np.ndarray) -> np.ndarray:
    """(K, P) bool → (P,) int16: index of the single true value of each column. Several times faster than argmax."""
    return np.asarray(np.einsum("kp,k->p", chosen.view(np.uint8), np.arange(len(chosen), dtype=np.int16)))


def first_largest(scores: Tensor) -> np.ndarray:
    """(K, P) → (P,) int16: the argmax, the first of equals."""
    best = scores.numpy() == scores.amax(0).numpy()
    labels = sole(best)
    several = np.flatnonzero(best.sum(0, dtype=np.int16) != 1)
    labels[several] = best[:, several].argmax(0)
    return labels
