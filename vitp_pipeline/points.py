"""Which pixel stands for a mask (design §4; facts §3.1.4, §3.2.2).

Every function returns (Q, 2) int32, (row, col), pixels of the original, upright image, also of a view that shows a
window of it or mirrors it; no point lies outside the window. The logits at image resolution are those of
`assemble.upsample`: upsampled to the padded frame, padding cropped, resized to the original size.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.assemble.resize import Taps, resize_rectangle, taps
from vitp_pipeline.assemble.upsample import check_frame, check_protocol, iter_mask_logits, seen_taps
from vitp_pipeline.errors import UsageError
from vitp_pipeline.geometry import View

PEAK_DISTANCE = 0.25
"""Least distance between the peaks of a mask, in units of the side of a square as large as the mask."""

# Interpolated values are convex combinations of mask cells up to this relative rounding error of float64.
_SLACK = 1e-12


def max_points(mask_logits: Tensor, view: View, protocol: str, at: str = "image") -> np.ndarray:
    """The pixel where each mask's logit is largest; ties go to the lowest flat index.

    Sigmoid is monotone, so this is also the largest probability. A mask without a positive logit has a point
    too.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame, any device; use the generator's full-precision
            output.
        view: how the generator saw the image.
        protocol: the generator's protocol. At image resolution all protocols move *logits* by the same chain.
        at: "image" = argmax of the logits on the original pixel grid (official OneFormer path, facts §3.1.4);
            "mask" = argmax over the mask cells whose centre lies inside the resized image (official
            InternImage path, facts §3.2.2), given as the original pixel that contains the cell's centre; ties go to
            the lowest cell of the mask as the network gave it.
    Returns:
        (Q, 2) int32. "image" evaluates the bilinear surface in float64, so a plateau (every image border is
        one) is an exact tie; float32 `interpolate` + argmax may pick another pixel only where the best two
        differ by rounding.
    Raises:
        UsageError: unknown `protocol` or `at`.
        IncompatibleError: shape and view disagree.
    """
    check_protocol(protocol)
    check_frame(mask_logits, view)
    cells = mask_logits.detach().float().cpu().numpy()
    if at == "image":
        rows, cols = _Axis.of(view, 0), _Axis.of(view, 1)
        points = np.array([_max_at_image(plane, rows, cols, view.flip) for plane in cells], np.int64).reshape(-1, 2)
        points += view.pixels(0)[0], view.pixels(1)[0]
        points[:, 1] = view.upright(points[:, 1])
    elif at == "mask":
        points = _max_at_mask(cells, view)
    else:
        raise UsageError(f"unknown resolution {at!r} of the max point", "Choose image or mask")
    return np.array(points, np.int32).reshape(-1, 2)


def centre_points(mask_logits: Tensor, view: View, protocol: str) -> np.ndarray:
    """The pixel farthest from the outside of {logit > 0} at image resolution, the image border being outside.

    Maximum of the Euclidean distance transform, ties to the lowest flat index; where no logit is positive,
    the max point.

    Args, Returns, Raises: as `max_points` at "image".
    """
    from scipy.ndimage import distance_transform_edt

    def deepest(positive: np.ndarray, query: int) -> tuple[int, int]:
        top, left, inside = _bounding_box(positive)
        # One ring of outside pixels: beyond the bounding box nothing is positive, or there is no image.
        depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        row, col = np.unravel_index(int(depth.argmax()), depth.shape)
        return top + int(row), left + int(col)

    return _points_inside(mask_logits, view, protocol, deepest)[:, 0]


def random_points(mask_logits: Tensor, view: View, protocol: str, image_id: str, seed: int = 0) -> np.ndarray:
    """A pixel drawn uniformly from {logit > 0} at image resolution; where no logit is positive, the max point.

    The draw depends on (seed, image_id, query index) alone, not on the order of images, batches or other queries.

    Args, Returns, Raises: as `max_points` at "image"; `image_id` is any text that names the image.
    """
    return spread_points(mask_logits, view, protocol, image_id, 1, seed)[:, 0]


def spread_points(
    mask_logits: Tensor, view: View, protocol: str, image_id: str, count: int, seed: int = 0
) -> np.ndarray:
    """Several pixels of every mask, drawn as in `random_points` with replacement.

    Returns:
        (Q, count, 2) int32, (row, col) in the original image.
    """

    def drawn(positive: np.ndarray, query: int) -> np.ndarray:
        pixels = np.flatnonzero(positive)
        chosen = pixels[_generator(seed, image_id, query).integers(len(pixels), size=count)]
        return np.stack(np.divmod(chosen, positive.shape[1]), 1)

    return _points_inside(mask_logits, view, protocol, drawn, count)


def peak_points(mask_logits: Tensor, view: View, protocol: str, count: int, at: str = "image") -> np.ndarray:
    """The highest local maxima of every mask, far enough from each other; the max point comes first.

    Sought among the cells of the mask, since a bilinear surface has no maximum between them: cells inside the resized
    image with a positive logit that no neighbour (of up to 8) exceeds; those of a plateau all count. From the
    highest down (ties to the lowest flat index), each is taken whose pixel lies at least `PEAK_DISTANCE`·√area, and at
    least one pixel, from those taken before; area is that of {logit > 0}, in pixels of the original. Where fewer are
    found, the max point fills the rest. A pixel that contains a cell's centre may lie just outside {logit > 0} where a
    mask is thin.

    Args, Raises: as `max_points`; `at` is the resolution of the first point alone.
    Returns:
        (Q, count, 2) int32, (row, col) in the original image: pixels that contain a cell's centre.
    """
    first = max_points(mask_logits, view, protocol, at)
    points = np.repeat(first[:, None], count, 1)
    rows, cols = (_cell_centres(view, axis) for axis in (0, 1))
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
    apart = np.maximum(PEAK_DISTANCE**2 * area, 1.0)
    queries = np.arange(len(cells))
    for rank in range(count):
        if rank:
            best = free.argmax(1)
            found = free[queries, best]
            points[found, rank] = place[queries, best][found]
        free &= ((place - points[:, None, rank]) ** 2).sum(2) >= apart[:, None]
    return points


def _highest_around(cells: Tensor) -> Tensor:
    """The largest value among each cell and its neighbours. `max_pool2d` gives the same, many times slower on a CPU."""
    for axis in (1, 2):
        highest, shared = cells.clone(), cells.shape[axis] - 1
        for own, neighbour in ((1, 0), (0, 1)):
            place = highest.narrow(axis, own, shared)
            torch.maximum(place, cells.narrow(axis, neighbour, shared), out=place)
        cells = highest
    return cells


def _points_inside(
    mask_logits: Tensor, view: View, protocol: str, choose: Callable[[np.ndarray, int], object], count: int = 1
) -> np.ndarray:
    """`choose(positive (H0, W0) bool, query)` for every mask with a positive pixel, the max point for the rest."""
    check_protocol(protocol)
    points = np.zeros((len(mask_logits), count, 2), np.int32)
    for query, plane in enumerate(iter_mask_logits(mask_logits.detach(), view)):
        positive = (plane > 0).cpu().numpy()
        if positive.any():
            points[query] = choose(positive, query)
        else:
            points[query] = max_points(mask_logits[query : query + 1], view, protocol)
    return points


def _generator(seed: int, image_id: str, query: int) -> np.random.Generator:
    digest = blake2b(f"{seed}\0{image_id}\0{query}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _bounding_box(positive: np.ndarray) -> tuple[int, int, np.ndarray]:
    rows, cols = np.flatnonzero(positive.any(1)), np.flatnonzero(positive.any(0))
    return int(rows[0]), int(cols[0]), positive[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


# ---- max at image resolution: a bounded search ----------------------------------------------------
# A pixel's value is a convex combination of the few mask cells it reads. So with L = the best value among the
# pixels that read the largest cell, only pixels that read a cell ≥ L can win: evaluate the bounding box of
# those, nothing else.


class _Axis:
    """One axis of mask → padded → (crop) → original: for every original index that is seen, the range of cells it
    reads. Indices count from the first one seen; columns run as in the mask, mirrored or not.
    """

    def __init__(self, up: Taps, down: Taps, same: bool) -> None:
        self.up, self.down, self.same = up, down, same
        self.low, self.high = self.up.low[self.down.low], self.up.high[self.down.high]
        self.cells = int(self.low[0]), int(self.high[-1]) + 1

    @classmethod
    def of(cls, view: View, axis: int) -> _Axis:
        same = view.resized[axis] == view.original[axis]
        return cls(taps(view.mask[axis], view.padded[axis]), seen_taps(view, axis), same)

    def readers(self, first: int, last: int) -> tuple[int, int]:
        """The half-open range of original indices that read any of the cells first … last; never empty.

        Where the original is far smaller than the mask some cells are read by no pixel: then a neighbour
        answers.
        """
        start = min(int(np.searchsorted(self.high, first)), len(self.low) - 1)
        return start, max(int(np.searchsorted(self.low, last, side="right")), start + 1)


def _max_at_image(plane: np.ndarray, rows: _Axis, cols: _Axis, flip: bool) -> tuple[int, int]:
    (r0, r1), (c0, c1) = rows.cells, cols.cells
    cells = plane[r0:r1, c0:c1]
    row, col = divmod(int(cells.argmax()), cells.shape[1])
    box = *rows.readers(r0 + row, r0 + row), *cols.readers(c0 + col, c0 + col)
    best = float(_rectangle(plane, rows, cols, box).max())
    candidates = cells >= best - _SLACK * abs(best)
    near_rows, near_cols = np.flatnonzero(candidates.any(1)), np.flatnonzero(candidates.any(0))
    if len(near_rows):  # not so when the logits hold NaN: then the first box answers
        box = (
            *rows.readers(r0 + int(near_rows[0]), r0 + int(near_rows[-1])),
            *cols.readers(c0 + int(near_cols[0]), c0 + int(near_cols[-1])),
        )
    values = _rectangle(plane, rows, cols, box)
    width = values.shape[1]
    # of equal pixels the first in the upright image
    row, col = divmod(int((values[:, ::-1] if flip else values).argmax()), width)
    return box[0] + row, box[2] + (width - 1 - col if flip else col)


def _rectangle(plane: np.ndarray, rows: _Axis, cols: _Axis, box: tuple[int, int, int, int]) -> np.ndarray:
    """The logits of a rectangle (top, bottom, left, right) of the original image, float64."""
    top, bottom, left, right = box
    up = *rows.down.source(top, bottom), *cols.down.source(left, right)
    (r0, r1), (c0, c1) = rows.up.source(up[0], up[1]), cols.up.source(up[2], up[3])
    values = resize_rectangle(plane[r0:r1, c0:c1], (r0, c0), rows.up, cols.up, up)
    if rows.same and cols.same:
        return values
    return resize_rectangle(values, (up[0], up[2]), rows.down, cols.down, box)


# ---- max at mask resolution -----------------------------------------------------------------------


def _max_at_mask(cells: np.ndarray, view: View) -> np.ndarray:
    rows, cols = (_cell_centres(view, axis) for axis in (0, 1))
    flat = cells[:, : len(rows), : len(cols)].reshape(len(cells), len(rows) * len(cols)).argmax(1)
    return np.stack([rows[flat // len(cols)], cols[flat % len(cols)]], 1)


def _cell_side(view: View, axis: int) -> float:
    """Pixels of the original image that a mask cell spans along an axis."""
    return view.padded[axis] / view.mask[axis] * view.original[axis] / view.resized[axis]


def _cell_centres(view: View, axis: int) -> np.ndarray:
    """For the cells of an axis whose centre lies inside what is seen of the resized image: the original index
    containing the centre.

    The centre (2i + 1)·padded / (2·mask) is compared and scaled in integers, so no cell is lost to rounding.
    """
    start, length = view.seen[axis], view.seen[axis + 2]
    unit = 2 * view.mask[axis]
    centre = (2 * np.arange(view.mask[axis], dtype=np.int64) + 1) * view.padded[axis]
    centre = centre[centre < unit * length] + unit * start
    if not len(centre):  # smaller than half a cell
        first = np.array(view.pixels(axis)[:1], np.int64)
        return view.upright(first) if axis == 1 else first
    if axis == 1 and view.flip:
        centre = unit * view.resized[1] - centre
    return centre * view.original[axis] // (unit * view.resized[axis])
