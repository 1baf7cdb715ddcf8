"""What a coordinate means, in one place.

Sizes are (height, width), points are (row, col), both in pixels with the origin at the top-left corner.
A pixel index names the pixel's cell; `pixel centre = index + 0.5`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

Size = tuple[int, int]


@dataclass(frozen=True)
class View:
    """How a generator saw an image: original → resized → padded right and bottom → mask resolution.

    Attributes:
        original: (H0, W0) of the image file.
        resized: (Hr, Wr) after the generator's resize, before padding.
        padded: (Hp, Wp), what entered the network; Hp ≥ Hr, Wp ≥ Wr.
        mask: (h, w) of the mask logits, which span the padded frame.
    """

    original: Size
    resized: Size
    padded: Size
    mask: Size

    def as_dict(self) -> dict[str, Size]:
        return asdict(self)


def normalise_points(points: np.ndarray, size: Size) -> np.ndarray:
    """Pixels to classifier coordinates.

    Args:
        points: (..., 2) integers, (row, col), 0 ≤ row < H, 0 ≤ col < W.
        size: (H, W) of the frame that the points lie in.
    Returns:
        (..., 2) float32 in [−1, 1): 2·(row/H, col/W) − 1, no half pixel (facts §1.1).
    """
    return (2.0 * np.asarray(points, np.float64) / np.asarray(size, np.float64) - 1.0).astype(np.float32)


def normalise_boxes(edges: np.ndarray, size: Size) -> np.ndarray:
    """Boxes to classifier coordinates; a point is a box of height and width 0 (paper §3.4).

    Args:
        edges: (..., 4) (top, left, bottom, right) in pixels; the edges of pixel i are i and i + 1.
        size: (H, W) of the frame that the boxes lie in.
    Returns:
        (..., 4) float32: the centre, 2·(row/H, col/W) − 1, then 2·(height/H, width/W).
    """
    edges, size = np.asarray(edges, np.float64), np.asarray(size, np.float64)
    first, last = edges[..., :2], edges[..., 2:]
    return np.concatenate([(first + last) / size - 1, 2 * (last - first) / size], axis=-1).astype(np.float32)
