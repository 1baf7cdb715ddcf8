"""Masks of another tool for photographs, in the place of a generator: whose they are, and proposals made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitp_pipeline.artifacts.pixel_groups import group_pixels
from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import DatasetSpec, Sample
from vitp_pipeline.datasets.identity import ImageIndex
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import size_of
from vitp_pipeline.inference.image_files import Picture, paths_below
from vitp_pipeline.interop.mask_import import NO_OBJECT_SHARE, MaskSource, open_source
from vitp_pipeline.stages.convert_masks import BinaryMasks, convert_masks

BY_ENDING = {".npz": "npz", ".json": "sam", ".csv": "sam"}
"""Formats that a folder is taken for, by the endings of its files."""


def guess_format(path: Path) -> str:
    """Guess the format of the masks in a folder. Raises UsageError where its files do not say it."""
    found = {BY_ENDING.get(file.suffix) for file in path.rglob("*")} - {None} if path.is_dir() else set()
    if len(found) != 1:
        raise UsageError(f"{path}: the format of these masks is unknown", "Name it: --from FORMAT")
    return str(found.pop())


class Photographs:
    """Pictures as `ImageIndex` finds the images of a split: the id is the name of a picture's results, the paths are
    below the common folder of all pictures and below the folder that was given.
    """

    where = "among the given images"

    def __init__(self, pictures: Sequence[Picture], spec: DatasetSpec) -> None:
        self.pictures, self.spec = pictures, spec
        self.image_ids = tuple(picture.name for picture in pictures)
        self._below = paths_below(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def index(self, where: object) -> ImageIndex:
        """Build an index to find the pictures by keys of a foreign file."""

        def paths(place: int) -> tuple[str, str]:
            return self._below[place], self.pictures[place].below or self._below[place]

        return ImageIndex(self.image_ids, paths, str(where))


class ForeignMasks:
    """Masks of another tool by picture, and their proposals.

    Args:
        format, path, no_object_share: as `open_source`.
        pictures: whose masks they are.
        spec: the classes.
    Raises:
        UserError: as `open_source` and `MaskSource.open`.
    """

    def __init__(
        self,
        format: str,
        path: Path,
        pictures: Sequence[Picture],
        spec: DatasetSpec,
        no_object_share: float = NO_OBJECT_SHARE,
    ) -> None:
        self.format, self.path, self.spec, self.no_object_share = format, path, spec, no_object_share
        self.source: MaskSource = open_source(format, path, Photographs(pictures, spec), no_object_share)
        self.source.open()

    @property
    def class_agnostic(self) -> bool:
        """True if the masks have no class scores."""
        return self.source.class_agnostic

    @property
    def identity(self) -> dict[str, object]:
        """Return all that results depend on, beside the masks of the image itself."""
        known = {"library": "imported", "format": self.format, "no_object_share": self.no_object_share}
        return {**known, "class_agnostic": True} if self.class_agnostic else known

    def digest(self, picture: Picture) -> str:
        """Return a digest of a picture's masks. Raises InputError when it has none."""
        if digest := self.source.digest(_sample(picture.name)):
            return digest
        raise InputError(f"{picture.path}: {self.path} holds no masks of this image")

    def record(self, image: np.ndarray, name: str, settings: ProposalSettings) -> ProposalRecord:
        """Make the proposals of a picture.

        Args:
            image: (H, W, 3). name: the picture's.
            settings: of [generate-proposals], for points and for what is kept.
        Returns:
            the record; with groups of pixels where its masks are binary ones of the image's resolution.
        Raises:
            InputError: its masks cannot be read, or do not fit the image.
        """
        size = size_of(image)
        found = convert_masks(self.source.read(_sample(name), size), size, settings, self.spec, name, name)
        groups, masks = None, found.masks
        if isinstance(masks, BinaryMasks):
            if masks.size == size:
                groups, masks = group_pixels(masks.parts(), size)
            else:
                masks = masks.dense
        return ProposalRecord(**vars(found.entry), class_logits=found.class_logits, masks=masks, groups=groups)


def _sample(name: str) -> Sample:
    return Sample(name, Path(name), None)
