"""Images as a frozen backbone sees them: stored features where they are there, else pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from vitp_pipeline.artifacts.features import FeatureStore
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.decoding.archives import read_bytes
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size, size_of

Seen = Callable[[bool], np.ndarray]
"""Give what the backbone sees of an image, or with True of its mirror image: features (F, P, D) float16 where they are
stored, else pixels (3, H, W) uint8. `PatchEncoder.features` takes either. Raises InputError: it cannot be read."""


class FeatureSource:
    """Opens the images of a split. Its threads may share it.

    Args:
        size: (height, width) of the backbone's input.
        stored: the stored features of the images (False) and of their mirror images (True), as far as there are any.
    """

    def __init__(self, dataset: Dataset, size: Size, stored: Mapping[bool, FeatureStore] | None = None) -> None:
        self.dataset, self.size, self.stored = dataset, size, dict(stored or {})

    def open(self, sample: Sample) -> tuple[Size, Seen]:
        """Open an image; of one with stored features no pixel is decoded.

        Returns:
            (height, width) of the original, and what gives its content.
        Raises:
            InputError: it cannot be read.
        """
        found = {mirrored: store.find(sample.image_id) for mirrored, store in self.stored.items()}
        if any(found.values()):
            digest = file_sha256(sample)
            found = {mirrored: image for mirrored, image in found.items() if image and image.file_sha256 == digest}
        sizes = [image.size for image in found.values() if image]
        picture = None if sizes else self.dataset.read_image(sample)

        def seen(mirrored: bool) -> np.ndarray:
            nonlocal picture
            if found.get(mirrored):
                features = self.stored[mirrored].read(sample.image_id)
                if features is not None:
                    return features
            if picture is None:
                picture = self.dataset.read_image(sample)
            return pixels_of(picture, self.size, mirrored)

        return sizes[0] if picture is None else size_of(picture), seen


def pixels_of(picture: np.ndarray, size: Size, mirrored: bool) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (3, height, width) uint8, resized, then mirrored if so wanted."""
    pixels = prepare_image(picture, size)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if mirrored else pixels


def file_sha256(sample: Sample) -> str:
    """Return the SHA-256 of an image's file, 64 hex digits. Raises InputError when it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(sample.image)).hexdigest()
    except OSError as error:
        raise InputError(f"{sample.image}: cannot be read ({error.strerror})") from error
