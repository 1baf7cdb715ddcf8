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
    """

    original: Size
    resized: Size
    padded: Size
    mask: Size
    window: Window | None = None
    flip: bool = False

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
