"""Random changes of an image together with its labels (facts §2.3, without its slips: new corners become IGNORE)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.geometry import Size


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image. The defaults only resize.

    Attributes:
        flip: mirror with probability 1/2.
        crop_scale: least and most share of the area that a random crop keeps; aspect ratio 3/4 to 4/3 of the image's.
        rotation: up to so many degrees either way; what comes in from outside is black and IGNORE.
        color_jitter: factors 1 ± this for brightness, contrast and saturation.
    """

    flip: bool = False
    crop_scale: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    color_jitter: float = 0.0

    def apply(
        self, image: np.ndarray, labels: np.ndarray, size: Size, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """One random version.

        Args:
            image: (H, W, 3) uint8. labels: (H, W) int16.
            size: (height, width) of the result's image.
        Returns:
            (3, height, width) uint8 and labels of the cropped, turned, mirrored original (any size: points are
            normalised by it, so it need not be resized).
        """
        picture, target = Image.fromarray(image), Image.fromarray(labels.astype(np.int32))
        if self.crop_scale != (1.0, 1.0):
            box = self._crop_box(labels.shape, rng)
            picture, target = picture.crop(box), target.crop(box)
        if self.rotation:
            angle = float(rng.uniform(-self.rotation, self.rotation))
            picture = picture.rotate(angle, Image.Resampling.BILINEAR)
            target = target.rotate(angle, Image.Resampling.NEAREST, fillcolor=IGNORE)
        if self.flip and rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            target = target.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        if self.color_jitter:
            for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = float(rng.uniform(1 - self.color_jitter, 1 + self.color_jitter))
                picture = enhancer(picture).enhance(factor)
        pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
        return pixels, np.asarray(target).astype(np.int16)

    def _crop_box(self, shape: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        height, width = shape
        area = float(rng.uniform(*self.crop_scale))
        ratio = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        rows = min(height, max(1, round(height * (area / ratio) ** 0.5)))
        cols = min(width, max(1, round(width * (area * ratio) ** 0.5)))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - cols + 1))
        return left, top, left + cols, top + rows
