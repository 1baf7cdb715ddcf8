"""Random changes of an image together with its labels or boxes.

As in `dinov2/data/datasets` of sajjad-sh33/ViT-P, except that new corners become IGNORE and boxes are cut at the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.geometry import Size

LEAST_VISIBLE = 0.5
"""Least share of a box's area that must remain in the image; other boxes are dropped."""


@dataclass(frozen=True)
class Change:
    """Parameters of one random change: crop, then rotation, then flip, then color.

    Attributes:
        crop: (left, top, right, bottom) in pixels, or None.
        angle: degrees counter-clockwise, about the crop's center.
        flip: left becomes right.
        factors: of brightness, contrast and saturation; empty = unchanged.
    """

    crop: tuple[int, int, int, int] | None = None
    angle: float = 0.0
    flip: bool = False
    factors: tuple[float, ...] = ()

    def picture(self, image: np.ndarray, size: Size) -> np.ndarray:
        """(H, W, 3) uint8 to (3, height, width) uint8; pixels that a rotation brings in are black."""
        picture = Image.fromarray(image)
        if self.crop:
            picture = picture.crop(self.crop)
        if self.angle:
            picture = picture.rotate(self.angle, Image.Resampling.BILINEAR)
        if self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        if self.factors:
            enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for enhancer, factor in zip(enhancers, self.factors, strict=True):
                picture = enhancer(picture).enhance(factor)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Crop, rotate and flip a (H, W) integer map, same dtype, IGNORE where a rotation brings pixels in.

        Any size: points are normalized by it, so it need not be resized.
        """
        if self.crop:
            left, top, right, bottom = self.crop
            labels = labels[top:bottom, left:right]
        if self.angle:
            turned = Image.fromarray(labels.astype(np.int32))
            turned = turned.rotate(self.angle, Image.Resampling.NEAREST, fillcolor=IGNORE)
            labels = np.asarray(turned).astype(labels.dtype)
        return np.ascontiguousarray(labels[:, ::-1] if self.flip else labels)

    def boxes(self, edges: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray, Size]:
        """Transform boxes. A rotated box becomes the smallest upright box around it.

        Args:
            edges: (M, 4) float (top, left, bottom, right) in pixels, of positive area.
            size: (height, width) of the image.
        Returns:
            (M, 4) edges inside the new frame; (M,) bool, False where less than LEAST_VISIBLE of a box is left; the
            frame's (height, width).
        """
        edges, visible = edges.astype(np.float64), np.ones(len(edges))
        if self.crop:
            left, top, right, bottom = self.crop
            size = (bottom - top, right - left)
            edges, share = _clamped(edges - [top, left, top, left], size)
            visible = visible * share
        if self.angle:
            edges, share = _clamped(_turned(edges, size, self.angle), size)
            visible = visible * share
        if self.flip:
            top, left, bottom, right = edges.T
            edges = np.stack([top, size[1] - right, bottom, size[1] - left], axis=1)
        return edges, visible >= LEAST_VISIBLE, size


def _clamped(edges: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Boxes cut off at the frame, and the share of each one's area that is left."""
    inside = np.clip(edges, 0, [size[0], size[1], size[0], size[1]])
    whole, left = (np.prod(e[:, 2:] - e[:, :2], axis=1) for e in (edges, inside))
    return inside, left / np.maximum(whole, 1e-9)


def _turned(edges: np.ndarray, size: Size, angle: float) -> np.ndarray:
    """The upright boxes around boxes that turn counter-clockwise about the frame's center, as `Image.rotate` does."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    middle = np.array(size) / 2
    rows, cols = edges[:, [0, 0, 2, 2]] - middle[0], edges[:, [1, 3, 1, 3]] - middle[1]
    rows, cols = middle[0] + cos * rows - sin * cols, middle[1] + sin * rows + cos * cols
    return np.stack([rows.min(1), cols.min(1), rows.max(1), cols.max(1)], axis=1)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image. The defaults only resize.

    The official recipe: flip, rotation 60, and crop_scale (0.5, 1.0) on ADE20K and Cityscapes. Its crops
    are 3:4 to 4:3 whatever the input's shape; here that is relative to the image's own, to avoid further
    stretching.

    Attributes:
        flip: left and right, with probability 1/2.
        crop_scale: least and most share of the area that a random crop keeps; aspect ratio 3/4 to 4/3 of the image's.
        rotation: up to so many degrees either way; what comes in from outside is black and IGNORE.
        color_jitter: factors 1 ± this for brightness, contrast and saturation.
    """

    flip: bool = False
    crop_scale: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    color_jitter: float = 0.0

    def draw(self, shape: Size, rng: np.random.Generator) -> Change:
        """One random change of an image of (height, width) `shape`."""
        crop = self._crop_box(shape, rng) if self.crop_scale != (1.0, 1.0) else None
        angle = float(rng.uniform(-self.rotation, self.rotation)) if self.rotation else 0.0
        flip = self.flip and rng.random() < 0.5
        jitter = self.color_jitter
        factors = tuple(float(rng.uniform(1 - jitter, 1 + jitter)) for _ in range(3)) if jitter else ()
        return Change(crop, angle, flip, factors)

    def apply(
        self, image: np.ndarray, labels: np.ndarray, size: Size, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """One random version of an image (H, W, 3) uint8 and its labels (H, W): (3, height, width) uint8, labels."""
        change = self.draw((labels.shape[0], labels.shape[1]), rng)
        return change.picture(image, size), change.labels(labels)

    def _crop_box(self, shape: Size, rng: np.random.Generator) -> tuple[int, int, int, int]:
        height, width = shape
        area = float(rng.uniform(*self.crop_scale))
        ratio = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        rows = min(height, max(1, round(height * (area / ratio) ** 0.5)))
        cols = min(width, max(1, round(width * (area * ratio) ** 0.5)))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - cols + 1))
        return left, top, left + cols, top + rows
