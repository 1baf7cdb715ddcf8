"""The masks of the ground truth itself, without their classes: what a classifier makes of perfect masks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.decoding.archives import read_bytes
from vitp_pipeline.decoding.rle import Rle, encode_mask, mask_area
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import Size
from vitp_pipeline.interop.mask_import import MASK_FORMATS
from vitp_pipeline.interop.pseudo_logits import ForeignMasks, logits_of_objectness


@MASK_FORMATS.register("ground-truth")
class GroundTruthMasks:
    """A mask for every segment, or every object, or else every class of an image, as its labels have them.

    Crowds and pixels without a label are no masks; neither is a listed segment without a pixel.

    Args:
        path: None: the data set says where its labels lie.
        no_object_share: unused.
    Raises:
        UsageError: a path, or labels that are boxes.
    """

    class_agnostic = True
    needs_path = False

    def __init__(self, path: Path | None, dataset: Dataset, no_object_share: float) -> None:
        if path is not None:
            raise UsageError("--from ground-truth takes its masks from the data set", "Leave out --masks")
        dataset.require_truth("import-proposals --from ground-truth")
        if not dataset.has_masks:
            raise UsageError(f"the labels of {dataset.spec.name!r} are boxes, not masks")
        self.dataset = dataset
        self.unusable: list[str] = []

    def open(self) -> None:
        """Do nothing: the annotations that list the images were read with the data set."""

    def digest(self, sample: Sample) -> str:
        digest = hashlib.sha256()
        try:
            if self.dataset.kind.file_per_image:
                digest.update(read_bytes(sample.label))
            if sample.annotation is not None:
                objects = sample.annotation.segments if self.dataset.has_segments else sample.annotation.shapes
                digest.update(json.dumps([vars(own) for own in objects], default=_plain).encode())
        except (InputError, OSError) as error:  # `read` raises it again, for this image alone
            digest.update(str(error).encode())
        return digest.hexdigest()

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        masks, truth = self._masks(sample)
        if truth != size:
            raise InputError(
                f"{sample.label}: has {truth[1]}×{truth[0]} pixels, its image {sample.image.name} {size[1]}×{size[0]}"
            )
        logits = logits_of_objectness(np.ones(len(masks)), len(self.dataset.spec.classes))
        return ForeignMasks(logits, masks, size)

    def _masks(self, sample: Sample) -> tuple[list[Rle], Size]:
        """Read the masks of an image and its labels' (H, W)."""
        if self.dataset.has_segments:
            numbers, segments = self.dataset.read_panoptic(sample)
            values = [segment.id for segment in segments if not segment.iscrowd]
        elif self.dataset.has_instances:
            objects = self.dataset.read_instances(sample)
            masks = [own.rle for own in objects if not own.iscrowd and mask_area(own.rle)]
            return masks, self.dataset.image_size(sample)
        else:
            numbers = self.dataset.read_semantic(sample)
            values = [k for k in np.unique(numbers).tolist() if k != IGNORE]
        found = ((numbers == value) for value in values)
        return [encode_mask(mask) for mask in found if mask.any()], (numbers.shape[0], numbers.shape[1])


def _plain(value: object) -> object:
    """Write out what JSON has no form for: arrays of coordinates, bytes."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)
