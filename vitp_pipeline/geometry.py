"""Coordinate conventions, and the map between an image, a view of it and its masks.

Sizes are (height, width), points are (row, col), both in pixels with the origin at the top-left corner.
A pixel index names the pixel's cell; `pixel center = index + 0.5`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Size = tuple[int, int]
Window = tuple[int, int, int, int]
"""(top, left, height, width)."""


@dataclass(frozen=True)
class View:
    """Geometry from image to masks: original → resized → flipped → window → padded right and bottom → masks.

    A view without window and flip is the whole image, upright.

    Attributes:
        original: (H0, W0) of the image file.
        resized: (Hr, Wr) of the whole image after the generator's resize.
        padded: (Hp, Wp), what entered the network; at least as large as what is seen.
        mask: (h, w) of the mask logits, which span the padded frame.
        window: the part of the resized, flipped image that was seen; None = all of it.
        flip: whether left and right were exchanged before the window was cut.
        through: the size that the image had been resized to before it was resized to `resized`; None = that was made
            from the original.
    """

    original: Size
    resized: Size
    padded: Size
    mask: Size
    window: Window | None = None
    flip: bool = False
    through: Size | None = None

    @property
    def whole(self) -> bool:
        """True if it shows the whole image upright."""
        return self.window is None and not self.flip

    @property
    def seen(self) -> Window:
        """The window, also when it is all of the resized image."""
        return self.window or (0, 0, *self.resized)

    def pixels(self, axis: int) -> tuple[int, int]:
        """The half-open range of original rows (axis 0) or columns (1) whose centers are seen; never empty.

        Columns are those of the flipped image when the view is: see `upright`.
        """
        start, length = self.seen[axis], self.seen[axis + 2]
        original, resized = self.original[axis], self.resized[axis]
        # pixel i's center lies at (2i + 1)·resized / (2·original): the first at or beyond an edge, in integers
        first, stop = (-((resized - 2 * edge * original) // (2 * resized)) for edge in (start, start + length))
        first = min(max(first, 0), original - 1)
        return first, max(first + 1, min(stop, original))

    def upright(self, columns: np.ndarray) -> np.ndarray:
        """Columns of the original image from those of the image as it was flipped, or not."""
        return self.original[1] - 1 - columns if self.flip else columns

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def size_of(image: np.ndarray) -> Size:
    """(height, width) of an image (H, W, …) or a map (H, W)."""
    height, width = image.shape[:2]
    return height, width


def normalize_points(points: np.ndarray, size: Size) -> np.ndarray:
    """Pixels to classifier coordinates.

    Args:
        points: (..., 2) integers, (row, col), 0 ≤ row < H, 0 ≤ col < W.
        size: (H, W) of the frame that the points lie in.
    Returns:
        (..., 2) float32 in [−1, 1): 2·(row/H, col/W) − 1, no half pixel, as the authors'
        `dinov2/models/vision_transformer.py` has it.
    """
    return (2.0 * np.asarray(points, np.float64) / np.asarray(size, np.float64) - 1.0).astype(np.float32)


def normalize_in_view(points: np.ndarray, view: View) -> np.ndarray:
    """Pixels to classifier coordinates in what a view shows, flipped and cut as it is, its padding apart.

    So the authors' `oneformer/oneformer_model.py` has them: of the flipped image, where that is what its network saw.

    Args:
        points: (..., 2) integers, (row, col), pixels of the original, upright image.
    Returns:
        (..., 2) float32: 2·(row, col)/size − 1; of a view without a window `normalize_points`, flipped or not.
    """
    _, _, *length = view.seen
    places = _seen(points, view) * np.divide(view.resized, view.original) - view.seen[:2]
    normalized: np.ndarray = (2.0 * places / np.asarray(length, np.float64) - 1.0).astype(np.float32)
    return normalized


def normalize_cells(points: np.ndarray, view: View) -> np.ndarray:
    """Pixels to classifier coordinates: the mask cell in which each one's center lies, in units of the view's size.

    The authors' `decode_heads/mask2former_head.py` divides the cell's index by the number of cells: the top left
    corner of the cell, and the masks of a window or of a flipped image as if they were the whole upright image's. Their
    masks have no padding; where there is some, it is left out of the number.
    Exact for points that were found in a cell (`max_at = "mask"`) as long as a cell is wider than a pixel of the
    original; else the cell may be a neighbor, less than a pixel away.

    Args:
        points: (..., 2) integers, (row, col), pixels of the original, upright image inside the view.
    Returns:
        (..., 2) float32 in [−1, 1): 2·(row/h, col/w) − 1 of cells, (h, w) of which the view has.
    """
    original, padded, mask = (np.array(size, np.int64) for size in (view.original, view.padded, view.mask))
    # the center (2i + 1)·resized / (2·original), less the window's start, in integers
    center = (2 * _seen(points, view) + 1) * view.resized - 2 * original * view.seen[:2]
    cells = np.clip(center * mask // (2 * original * padded), 0, mask - 1)
    normalized: np.ndarray = (2.0 * cells * padded / (mask * np.array(view.seen[2:])) - 1.0).astype(np.float32)
    return normalized


def _seen(points: np.ndarray, view: View) -> np.ndarray:
    """(row, col) int64 pixels of the image as it was flipped, or not, from those of the original."""
    points = np.asarray(points, np.int64)
    return np.stack([points[..., 0], view.upright(points[..., 1])], -1)


def normalize_boxes(edges: np.ndarray, size: Size) -> np.ndarray:
    """Boxes to classifier coordinates; a point is a box of height and width 0 (paper §3.4).

    Args:
        edges: (..., 4) (top, left, bottom, right) in pixels; the edges of pixel i are i and i + 1.
        size: (H, W) of the frame that the boxes lie in.
    Returns:
        (..., 4) float32: the center, 2·(row/H, col/W) − 1, then 2·(height/H, width/W).
    """
    edges, frame = np.asarray(edges, np.float64), np.asarray(size, np.float64)
    first, last = edges[..., :2], edges[..., 2:]
    return np.concatenate([(first + last) / frame - 1, 2 * (last - first) / frame], axis=-1).astype(np.float32)
