"""Point policies: choose the pixels that represent a mask (paper §3.1).

Every function returns (Q, 2) int32, (row, col), pixels of the original, upright image, also of a view that shows a
window of it or flips it; no point lies outside the window. The logits at image resolution are those of
`postprocess.upsample`: upsampled to the padded frame, padding cropped, resized to the original size.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vitp_pipeline.datasets.regions import deepest_pixel
from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.resize import Lerp, LerpRows, lerp, resize_patches
from vitp_pipeline.postprocess.upsample import check_frame, check_protocol, iter_outlines, seen_lerp

MAXIMA_DISTANCE = 0.25
"""Least distance between the local maxima of a mask, in units of the side of a square as large as the mask."""

# Interpolated values are convex combinations of mask cells up to this relative rounding error of float64.
_SLACK = 1e-12
# A mask with more cells that could hold its maximum, a plateau, is searched in one rectangle around them.
_MANY = 64


def max_points(mask_logits: Tensor, view: View, protocol: str, at: str = "image") -> np.ndarray:
    """The pixel where each mask's logit is largest; ties go to the lowest flat index.

    Sigmoid is monotone, so this is also the largest probability. A mask without a positive logit has a point
    too.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame, any device; use the generator's full-precision
            output.
        view: how the generator saw the image.
        protocol: the generator's protocol. At image resolution all protocols move *logits* by the same chain.
        at: "image" = argmax of the logits on the original pixel grid; "view" = the same, but of equal pixels of a
            flipped view the first in the flipped image (the authors' `oneformer/oneformer_model.py`);
            "mask" = argmax over the mask cells whose center lies inside the resized image (the authors'
            `decode_heads/mask2former_head.py`), given as the original pixel that contains the cell's center; ties go
            to the lowest cell of the mask as the network gave it.
    Returns:
        (Q, 2) int32. "image" and "view" evaluate the bilinear surface in float64, so a plateau (every image border
        is one) is an exact tie; float32 `interpolate` + argmax may pick another pixel only where the best two
        differ by rounding.
    Raises:
        UsageError: unknown `protocol` or `at`.
        IncompatibleError: shape and view disagree.
    """
    check_protocol(protocol)
    check_frame(mask_logits, view)
    cells = mask_logits.detach().float()
    if not len(cells):
        points = np.zeros((0, 2))
    elif at in ("image", "view"):
        points = _max_at_image(cells, _Axis.of(view, 0), _Axis.of(view, 1), view.flip and at == "image")
        points += view.pixels(0)[0], view.pixels(1)[0]
        points[:, 1] = view.upright(points[:, 1])
    elif at == "mask":
        points = _max_at_mask(cells, view)
    else:
        raise UsageError(f"unknown resolution {at!r} of the max point", "Choose image, view or mask")
    return np.array(points, np.int32).reshape(-1, 2)


def center_points(mask_logits: Tensor, view: View, protocol: str) -> np.ndarray:
    """The pixel farthest from the outside of {logit > 0} at image resolution, the image border being outside.

    Maximum of the Euclidean distance transform, ties to the lowest flat index; where no logit is positive,
    the max point.

    Args, Returns, Raises: as `max_points` at "image".
    """

    def deepest(positive: np.ndarray, query: int) -> tuple[int, int]:
        top, left, inside = _bounding_box(positive)
        row, col = deepest_pixel(inside)
        return top + row, left + col

    return _points_inside(mask_logits, view, protocol, deepest)[:, 0]


def random_points(
    mask_logits: Tensor, view: View, protocol: str, image_id: str, seed: int = 0, first: int = 0
) -> np.ndarray:
    """A pixel drawn uniformly from {logit > 0} at image resolution; where no logit is positive, the max point.

    The draw depends on (seed, image_id, query index) alone, not on the order of images, batches or other queries.

    Args, Returns, Raises: as `max_points` at "image"; `image_id` is any text that identifies the image, `first` the
        index of the first of these queries.
    """
    return multi_points(mask_logits, view, protocol, image_id, 1, seed, first)[:, 0]


def multi_points(
    mask_logits: Tensor, view: View, protocol: str, image_id: str, count: int, seed: int = 0, first: int = 0
) -> np.ndarray:
    """Several pixels of every mask, drawn as in `random_points` with replacement.

    Returns:
        (Q, count, 2) int32, (row, col) in the original image.
    """

    def drawn(positive: np.ndarray, query: int) -> np.ndarray:
        pixels = np.flatnonzero(positive)
        chosen = pixels[_generator(seed, image_id, first + query).integers(len(pixels), size=count)]
        return np.stack(np.divmod(chosen, positive.shape[1]), 1)

    return _points_inside(mask_logits, view, protocol, drawn, count)


def local_maxima_points(mask_logits: Tensor, view: View, protocol: str, count: int, at: str = "image") -> np.ndarray:
    """The highest local maxima of every mask, far enough from each other; the max point comes first.

    Sought among the cells of the mask, since a bilinear surface has no maximum between them: cells inside the resized
    image with a positive logit that no neighbor (of up to 8) exceeds; those of a plateau all count. From the
    highest down (ties to the lowest flat index), each is taken whose pixel lies at least `MAXIMA_DISTANCE`·√area, and
    at least one pixel, from those taken before; area is that of {logit > 0}, in pixels of the original. Where fewer are
    found, the max point fills the rest. A pixel that contains a cell's center may lie just outside {logit > 0} where a
    mask is thin.

    Args, Raises: as `max_points`; `at` is the resolution of the first point alone.
    Returns:
        (Q, count, 2) int32, (row, col) in the original image: pixels that contain a cell's center.
    """
    first = max_points(mask_logits, view, protocol, at)
    points = np.repeat(first[:, None], count, 1)
    rows, cols = (_cell_centers(view, axis) for axis in (0, 1))
    cells = mask_logits.detach().float()[:, : len(rows), : len(cols)]
    if not len(cells):
        return points
    positive = cells > 0
    candidates = (positive & (cells == _highest_around(cells))).nonzero()
    heights = cells[tuple(candidates.T)].cpu().numpy()
    query, row, col = candidates.cpu().numpy().T
    order = np.lexsort((-heights, query))  # stable: equal ones stay in flat order
    query = query[order]
    amounts = np.bincount(query, minlength=len(cells))
    # the candidates of a query side by side, the highest first; places beyond its last one are never free
    rank_in_query = np.arange(len(query)) - (np.cumsum(amounts) - amounts)[query]
    place = np.zeros((len(cells), max(1, amounts.max()), 2), np.int64)
    place[query, rank_in_query] = np.stack([rows[row], cols[col]], 1)[order]
    free = np.arange(place.shape[1]) < amounts[:, None]
    area = positive.sum((1, 2)).cpu().numpy() * _cell_side(view, 0) * _cell_side(view, 1)
    apart = np.maximum(MAXIMA_DISTANCE**2 * area, 1.0)
    queries = np.arange(len(cells))
    for rank in range(count):
        if rank:
            best = free.argmax(1)
            found = free[queries, best]
            points[found, rank] = place[queries, best][found]
        free &= ((place - points[:, None, rank]) ** 2).sum(2) >= apart[:, None]
    return points


def _highest_around(cells: Tensor) -> Tensor:
    """The largest value among each cell and its neighbors. `max_pool2d` gives the same, many times slower on a CPU."""
    for axis in (1, 2):
        highest, shared = cells.clone(), cells.shape[axis] - 1
        for own, neighbor in ((1, 0), (0, 1)):
            place = highest.narrow(axis, own, shared)
            torch.maximum(place, cells.narrow(axis, neighbor, shared), out=place)
        cells = highest
    return cells


def _points_inside(
    mask_logits: Tensor, view: View, protocol: str, choose: Callable[[np.ndarray, int], ArrayLike], count: int = 1
) -> np.ndarray:
    """The max point of every mask without a positive pixel; for the others `choose(positive (r, c) bool, query)`, which
    counts from the first pixel of a rectangle beyond which nothing is positive.
    """
    check_protocol(protocol)
    points, empty = np.zeros((len(mask_logits), count, 2), np.int32), []
    for query, outline in enumerate(iter_outlines(mask_logits.detach(), view)):
        if outline is not None and outline.inside.any():
            points[query] = np.add(choose(outline.inside, query), (outline.top, outline.left))
        else:
            empty.append(query)
    if empty:
        points[empty] = max_points(mask_logits[empty], view, protocol)[:, None]
    return points


def _generator(seed: int, image_id: str, query: int) -> np.random.Generator:
    digest = blake2b(f"{seed}\0{image_id}\0{query}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _bounding_box(positive: np.ndarray) -> tuple[int, int, np.ndarray]:
    rows, cols = np.flatnonzero(positive.any(1)), np.flatnonzero(positive.any(0))
    return int(rows[0]), int(cols[0]), positive[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


# ---- max at image resolution: a bounded search ----------------------------------------------------
# A pixel's value is a convex combination of the few mask cells it reads. So with L = the best value among the
# pixels that read the largest cell, only pixels that read a cell ≥ L can win: evaluate those, nothing else.


class _Axis:
    """One axis of mask → padded → (crop) → original: for every original index that is seen, the range of cells it
    reads. Indices count from the first one seen; columns run as in the mask, flipped or not.
    """

    def __init__(self, up: Lerp, down: Lerp, same: bool) -> None:
        self.up, self.down, self.same = up, down, same
        self.low, self.high = self.up.low[self.down.low], self.up.high[self.down.high]
        self.cells = int(self.low[0]), int(self.high[-1]) + 1

    def reads(self, first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, LerpRows, LerpRows]:
        """Return the source ranges of original indices [first, stop).

        (n, p) cells; then the pixels that the first resize makes of them, then those of the second. All are as long as
        the longest: beyond its end a range repeats its last.
        """
        pixels = _ranges(first, stop - 1)
        between = _ranges(self.down.low[first], self.down.high[stop - 1])
        cells = _ranges(self.up.low[between[:, 0]], self.up.high[between[:, -1]])
        return cells, _reads(self.up, between, cells), _reads(self.down, pixels, between)

    @classmethod
    def of(cls, view: View, axis: int) -> _Axis:
        same = view.resized[axis] == view.original[axis]
        return cls(lerp(view.mask[axis], view.padded[axis]), seen_lerp(view, axis), same)

    def readers(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The half-open ranges of original indices that read any of the cells first … last; never empty.

        Where the original is far smaller than the mask some cells are read by no pixel: then a neighbor
        answers.
        """
        start = np.minimum(np.searchsorted(self.high, first), len(self.low) - 1)
        return start, np.maximum(np.searchsorted(self.low, last, side="right"), start + 1)


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    return np.asarray(np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None]))


def _reads(own: Lerp, index: np.ndarray, source: np.ndarray) -> LerpRows:
    """(low, high, weight) of the sources of some indices, each range counted from the first of its source."""
    start = source[:, :1]
    return LerpRows(own.low[index] - start, own.high[index] - start, own.weight[index])


def _max_at_image(cells: Tensor, rows: _Axis, cols: _Axis, flip: bool) -> np.ndarray:
    """(Q, 2) of the pixels that are seen; with `flip`, of equal ones in a row the last. Only lines and small patches of
    the logits leave the device.
    """
    (r0, r1), (c0, c1) = rows.cells, cols.cells
    inside, queries = cells[:, r0:r1, c0:c1], np.arange(len(cells))
    highest = inside.amax(2).cpu().numpy()
    row = highest.argmax(1)
    col = inside[queries, row].cpu().numpy().argmax(1)
    best = _rectangles(cells, rows, cols, queries, _boxes(rows, cols, r0 + row, c0 + col)).max((1, 2))
    least = (best - _SLACK * np.abs(best)).astype(np.float32)[:, None]
    near = highest >= least
    near[queries, row] = True  # and nothing else where the logits hold NaN
    query, line = near.nonzero()
    near = inside[query, line].cpu().numpy() >= least[query]
    near |= (line == row[query])[:, None] & (np.arange(c1 - c0) == col[query, None])
    place, column = near.nonzero()
    query, boxes = query[place], _boxes(rows, cols, r0 + line[place], c0 + column)

    found = []
    many = np.bincount(query, minlength=len(cells)) > _MANY
    for plane in queries[many]:
        own = boxes[query == plane]
        around = np.stack([*own[:, ::2].min(0), *own[:, 1::2].max(0)])[None, [0, 2, 1, 3]]
        found.append(_largest(cells, rows, cols, queries[plane, None], around, flip))
    few = ~many[query]
    if few.any():
        found.append(_largest(cells, rows, cols, query[few], boxes[few], flip))
    query, value, points = (np.concatenate(each) for each in zip(*found, strict=True))
    # of equal pixels the first, in the upright image where columns run flipped
    order = np.lexsort((-points[:, 1] if flip else points[:, 1], points[:, 0], -value, query))
    return points[order[np.searchsorted(query[order], queries)]]


def _boxes(rows: _Axis, cols: _Axis, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """(n, 4) (top, bottom, left, right) of the pixels that read some cells."""
    return np.stack([*rows.readers(row, row), *cols.readers(col, col)], 1)


def _largest(
    cells: Tensor, rows: _Axis, cols: _Axis, queries: np.ndarray, boxes: np.ndarray, flip: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for n rectangles the query (n,), the largest value (n,) and its pixel (n, 2), of equal ones the first in
    the upright image.
    """
    values = _rectangles(cells, rows, cols, queries, boxes)
    count, _, width = values.shape
    flat = (values[:, :, ::-1] if flip else values).reshape(count, -1)
    place = flat.argmax(1)
    row, col = np.divmod(place, width)
    col = width - 1 - col if flip else col
    # beyond a rectangle's own edge its last row or column is repeated
    pixels = np.minimum(boxes[:, ::2] + np.stack([row, col], 1), boxes[:, 1::2] - 1)
    return queries, flat[np.arange(count), place], pixels


def _rectangles(cells: Tensor, rows: _Axis, cols: _Axis, queries: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The logits of a rectangle of the original image for each of some queries, float64.

    Args:
        cells: (Q, h, w) float32.
        queries: (n,) which planes.
        boxes: (n, 4) (top, bottom, left, right), half-open.
    Returns:
        (n, height, width) of the largest box; beyond its own edge a rectangle's last row or column is repeated.
    """
    by_row, by_col = rows.reads(boxes[:, 0], boxes[:, 1]), cols.reads(boxes[:, 2], boxes[:, 3])
    places = queries[:, None, None], by_row[0][:, :, None], by_col[0][:, None]
    values = cells[tuple(torch.from_numpy(p).to(cells.device) for p in places)].cpu().numpy().astype(np.float64)
    values = resize_patches(values, by_row[1], by_col[1])
    return values if rows.same and cols.same else resize_patches(values, by_row[2], by_col[2])


# ---- max at mask resolution -----------------------------------------------------------------------


def _max_at_mask(cells: Tensor, view: View) -> np.ndarray:
    rows, cols = (_cell_centers(view, axis) for axis in (0, 1))
    flat = cells[:, : len(rows), : len(cols)].flatten(1).argmax(1).cpu().numpy()
    return np.stack([rows[flat // len(cols)], cols[flat % len(cols)]], 1)


def _cell_side(view: View, axis: int) -> float:
    """Pixels of the original image that a mask cell spans along an axis."""
    return view.padded[axis] / view.mask[axis] * view.original[axis] / view.resized[axis]


def _cell_centers(view: View, axis: int) -> np.ndarray:
    """For the cells of an axis whose center lies inside the visible part of the resized image: the original index
    containing the center.

    The center (2i + 1)·padded / (2·mask) is compared and scaled in integers, so no cell is lost to rounding.
    """
    start, length = view.seen[axis], view.seen[axis + 2]
    unit = 2 * view.mask[axis]
    center = (2 * np.arange(view.mask[axis], dtype=np.int64) + 1) * view.padded[axis]
    center = center[center < unit * length] + unit * start
    if not len(center):  # smaller than half a cell
        first = np.array(view.pixels(axis)[:1], np.int64)
        return view.upright(first) if axis == 1 else first
    if axis == 1 and view.flip:
        center = unit * view.resized[1] - center
    return center * view.original[axis] // (unit * view.resized[axis])
