"""Label maps from bounds of the class scores: most pixels are labeled at mask resolution, the others scored exactly.

A class score is S_c(x) = Σ_q p_qc·s_q(x). In a block (`blocks`) the mask probability s_q lies between those of
the block's least and largest cell: bilinear values lie between the cells that they read, and the sigmoid is monotone,
whether it comes before the resizes or after. So

    L_c = Σ_q p_qc·σ(least cell of q)  ≤  S_c(x)  ≤  Σ_q p_qc·σ(largest cell of q) = U_c

for every pixel x of the block, and a class with U_c < max_k L_k cannot win in it. Where a single class is left, all
pixels of the block have its label, and nothing is upsampled. Elsewhere the pixels are scored, for the classes that are
left. Where the sigmoid comes first (`mmseg0`) the scores themselves are interpolated, and more is known: a class that
wins in every cell of a block wins in all its pixels.

Float rounding: what decides without scoring must hold by `_slack`, more than all that float32 can do to the bounds and
to the scores. So labels equal those of `semantic_scores` except where the two best scores are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.blocks import (
    Runs,
    block_cells,
    block_pixels,
    block_values,
    first_largest,
    image_runs,
    pooled,
    sole,
    upsampled_runs,
)
from vitp_pipeline.postprocess.resize import Lerp, lerp

_VALUES = 1 << 19  # floats of a stack that is worked on at once: the caches hold a few of them
_BYTES_PER_VALUE = 256  # of all stacks that are alive together
_FEW_CLASSES = 32  # up to this many are all scored; of more, only the possible ones
_NEIGHBORS = 256  # blocks that are scored for the same classes: of fewer, fewer are left


@dataclass(frozen=True)
class _Work:
    """Arguments shared by all bands. weights: (A, K, Q) float32."""

    masks: Tensor
    weights: Tensor
    rows: Runs
    columns: Runs
    slack: list[float]
    early: bool  # the sigmoid comes before the resizes
    values: int  # floats of a stack

    @property
    def band(self) -> int:
        """Run of rows that are worked on at once."""
        return max(1, self.values // (max(self.weights.shape[1:]) * len(self.columns)))


def bounded_label_maps(
    mask_logits: Tensor, probs: Tensor, view: View, protocol: str, budget_bytes: int = 256 << 20
) -> np.ndarray | None:
    """The label maps of `semantic_label_maps`, with its arguments; None where blocks are not worthwhile or logits are
    not finite. At least one row of blocks is worked on at a time.
    """
    resizes_scores = protocol == "mmseg1" and view.resized != view.original
    rows, columns = ((upsampled_runs if resizes_scores else image_runs)(view, axis) for axis in (0, 1))
    if rows is None or columns is None:
        return None
    weights = probs.float().transpose(1, 2).contiguous()
    slack = _slack(mask_logits, weights)
    if not np.isfinite(slack).all():
        return None
    values = min(_VALUES, budget_bytes // _BYTES_PER_VALUE)
    work = _Work(mask_logits, weights, rows, columns, slack, protocol == "mmseg0", values)
    labels = np.empty((len(probs), *view.original), np.int16)
    if resizes_scores:
        _label_resized(work, view, labels)
    else:
        for start in range(0, len(rows), work.band):
            _label_band(work, start, min(start + work.band, len(rows)), labels)
    return labels


def _slack(mask_logits: Tensor, weights: Tensor) -> list[float]:
    """Return for each α a margin above the rounding error of the difference of two class scores or two bounds.

    A sum of Q products of float32 is off by Q·2⁻²⁴ of Σ p·s at most, a mask probability by a few 2⁻²⁴ and by a quarter
    of what interpolating logits of this size is.
    """
    largest = float(torch.stack(torch.aminmax(mask_logits)).abs().max()) if mask_logits.numel() else 0.0
    steps = weights.shape[2] + 8 + 2 * largest
    return (4 * steps * 2.0**-24 * weights.sum(2).amax(1)).tolist()


@dataclass(frozen=True)
class _Band:
    """Blocks of the runs of rows from `start` on.

    Attributes:
        cells: what `block_values` reads: of the mask logits (Q, …), or with an early sigmoid of the scores (A·K, …).
        labels: (A, runs, runs of columns) int16, −1 where bounds do not decide.
        possible: for each α (K, blocks) bool, the classes that may win.
    """

    start: int
    cells: Tensor
    labels: np.ndarray
    possible: list[np.ndarray]


def _bound(work: _Work, start: int, stop: int) -> _Band:
    rows, columns = work.rows, work.columns
    cells = block_cells(work.masks, rows, columns, start, stop).float().contiguous()
    chances = cells.sigmoid()
    labels = np.empty((len(work.weights), stop - start, len(columns)), np.int16)
    possible = []

    def ends(planes: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (pooled(planes, rows, columns, pick).flatten(1) for pick in (torch.minimum, torch.maximum))
        return low, high

    if work.early:
        cells = (work.weights.flatten(0, 1) @ chances.flatten(1)).view(-1, *cells.shape[1:])
        for label, scores, slack in zip(labels, cells.chunk(len(labels)), work.slack, strict=True):
            left, _ = _leaders(*ends(scores), slack)
            possible.append(left)
            _, winners = _leaders(scores.flatten(1), scores.flatten(1), slack)
            least, most = ends(torch.from_numpy(winners).view(1, *cells.shape[1:]))
            label[:] = torch.where(least == most, least, -1).view(label.shape).numpy()
    else:
        least, most = ends(chances)
        for label, weights, slack in zip(labels, work.weights, work.slack, strict=True):
            left, winners = _leaders(weights @ least, weights @ most, slack)
            possible.append(left)
            label[:] = winners.reshape(label.shape)
    return _Band(start, cells, labels, possible)


def _leaders(least: Tensor, most: Tensor, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """Return from bounds (K, P) the classes that may win, (K, P) bool, and the class where only one may, (P,) int16,
    else −1.
    """
    possible = most.numpy() >= (least.amax(0) - slack).numpy()
    return possible, np.where(possible.sum(0, dtype=np.int16) == 1, sole(possible), np.int16(-1))


def _label_band(work: _Work, start: int, stop: int, labels: np.ndarray) -> None:
    """Write the image's labels of the runs of rows [start, stop)."""
    band = _bound(work, start, stop)
    classes = work.weights.shape[1]
    own = work.rows.outputs[start, 0], work.rows.outputs[stop - 1, -1] + 1
    places = work.rows.run_of[own[0] : own[1]] - start
    for known, out in zip(band.labels, labels, strict=True):
        out[own[0] : own[1]] = known.take(work.columns.run_of, 1).take(places, 0)
    column, row = np.nonzero((band.labels < 0).any(0).T)  # column by column: neighbors share their classes
    for blocks in _pieces(row * len(work.columns) + column, work):
        row, column = np.divmod(blocks, len(work.columns))
        pixels = block_pixels(work.rows, work.columns, row + start, column, labels.shape[2]).ravel()
        if not work.early:
            chances = _values(work, band, row, column).sigmoid_().flatten(1)
        for alpha, out in enumerate(labels):
            left = _left(band.possible[alpha], blocks)
            if work.early:
                scores = _values(work, band, row, column, alpha * classes + left).flatten(1)
            else:
                scores = work.weights[alpha, left] @ chances
            out.reshape(-1)[pixels] = left.astype(np.int16)[first_largest(scores)]


def _pieces(blocks: np.ndarray, work: _Work) -> Iterator[np.ndarray]:
    pixels = work.rows.outputs.shape[1] * work.columns.outputs.shape[1]
    _, classes, queries = work.weights.shape
    size = max(1, work.values // ((classes if work.early else queries) * pixels))
    if classes > _FEW_CLASSES:
        size = min(size, _NEIGHBORS)
    return (blocks[start : start + size] for start in range(0, len(blocks), size))


def _left(possible: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The classes, ascending, that may win in some of the blocks; all, if there are few."""
    if len(possible) <= _FEW_CLASSES:
        return np.arange(len(possible))
    return np.flatnonzero(possible.take(blocks, 1).any(1))


def _values(work: _Work, band: _Band, row: np.ndarray, column: np.ndarray, planes: np.ndarray | None = None) -> Tensor:
    """(planes, R, R, n) values of the pixels of blocks; rows count from the band's first."""
    cells = band.cells if planes is None else band.cells[planes]
    return block_values(cells, work.rows, work.columns, row + band.start, column, band.start)


def _label_resized(work: _Work, view: View, labels: np.ndarray) -> None:
    """Label where scores are resized after the sum over masks (`mmseg1`).

    Blocks lie in the resized image. A pixel of the original that reads only blocks of one label gets it; for the
    others scores are computed, then resized.
    """
    down, across = (lerp(view.resized[axis], view.original[axis]) for axis in (0, 1))
    upper, lower = work.rows.run_of[down.low], work.rows.run_of[down.high]
    left, right = work.columns.run_of[across.low], work.columns.run_of[across.high]
    first = 0
    while first < len(upper):
        start = upper[first]
        last = max(first + 1, int(np.searchsorted(lower, start + work.band)))
        band = _bound(work, start, lower[last - 1] + 1)
        above, below = (band.labels[:, runs[first:last] - start] for runs in (upper, lower))
        lines = np.where(above == below, above, np.int16(-1))
        found = lines.take(left, 2)
        found[found != lines.take(right, 2)] = -1
        row, column = np.nonzero((found < 0).any(0))
        if len(row):
            found[:, row, column] = _resized_labels(work, band, down, across, row + first, column)
        labels[:, first:last] = found
        first = last


def _resized_labels(
    work: _Work, band: _Band, down: Lerp, across: Lerp, row: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """(A, n) labels of the pixels (row, column), (n,) each, of the original, all of which read the band alone."""
    width = len(work.columns)
    lines, files = (down.low[row], down.high[row]), (across.low[column], across.high[column])
    read = [(i, j, (work.rows.run_of[i] - band.start) * width + work.columns.run_of[j]) for i in lines for j in files]
    needed = np.zeros(band.labels[0].size, bool)
    for *_, block in read:
        needed[block] = True
    blocks = np.flatnonzero(needed)
    chances = torch.cat(
        [_values(work, band, *np.divmod(piece, width)).sigmoid_() for piece in _pieces(blocks, work)], 3
    )
    place = np.cumsum(needed) - 1
    within = [
        (i - work.rows.outputs[work.rows.run_of[i], 0]) * chances.shape[2]
        + (j - work.columns.outputs[work.columns.run_of[j], 0])
        for i, j, _ in read
    ]
    at = [torch.from_numpy(w * len(blocks) + place[block]) for w, (*_, block) in zip(within, read, strict=True)]
    chances = chances.flatten(1)
    by_row, by_column = (
        torch.from_numpy(weight.astype(np.float32)) for weight in (down.weight[row], across.weight[column])
    )
    labels = []
    for weights in work.weights:
        corners = (weights @ chances).index_select
        upper, lower = (torch.lerp(corners(1, at[i]), corners(1, at[i + 1]), by_column) for i in (0, 2))
        labels.append(first_largest(torch.lerp(upper, lower, by_row)))
    return np.stack(labels)
