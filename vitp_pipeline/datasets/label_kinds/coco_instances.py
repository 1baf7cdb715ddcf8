"""COCO instances: an annotation file that lists objects with outlines, or with boxes alone."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets.annotations import InstanceAnnotations, Shape
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, Finding, LabelKind, Sample, Split
from vitp_pipeline.datasets.label_kinds.truth import GroundTruthInstance, ObjectList
from vitp_pipeline.decoding.records import segmentation_mask, segmentation_rle
from vitp_pipeline.decoding.rle import mask_area
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size


def read_objects(dataset: Split, sample: Sample, coarse: bool) -> ObjectList:
    """Read the objects of an annotation file, as `LabelKind.read`."""
    if not dataset.has_masks:
        raise InputError(f"{sample.label}: its objects are boxes, without masks", 'Train on data = ["boxes"]')
    assert sample.annotation is not None
    size, found = dataset.image_size(sample), []
    for shape in sample.annotation.shapes:
        where = f"{sample.label}: annotation {shape.id} of {sample.image.name}"
        if not shape.outline:
            raise InputError(f"{where} has no `segmentation`", 'Train on data = ["boxes"], or leave it out')
        rle = segmentation_rle(shape.outline, size, where)
        area = float(mask_area(rle)) if shape.area is None else shape.area
        found.append(GroundTruthInstance(shape.id, shape.category, shape.iscrowd, rle, area))
    return ObjectList(found, size)


def look_at_objects(dataset: Split, sample: Sample, found: Finding) -> None:
    """Look at them, as `LabelKind.look`."""
    found.require_listed_size(sample)
    size = found.size or dataset.image_size(sample)
    covered = np.zeros(size, bool)
    for shape in sample.annotation.shapes if sample.annotation is not None else ():
        where = f"{sample.label}: annotation {shape.id} of {sample.image.name}"
        label = dataset.spec.classes[shape.category].label
        found.objects[label] += 1
        if reason := _box_trouble(shape, size):
            found.odd.append(f"{where} {reason}")
        if shape.outline:
            mask = segmentation_mask(shape.outline, size, where)
            found.values[label] += int(mask.sum())
            covered |= mask
        elif dataset.has_masks:
            found.broken.append((sample.label, f"{where} has no `segmentation`"))
    found.label_mode = "masks" if dataset.has_masks else "boxes"
    if dataset.has_masks:
        found.void = int((~covered).sum())


def _box_trouble(shape: Shape, size: Size) -> str:
    if shape.bbox is None:
        return "has no box"
    left, top, width, height = shape.bbox
    if min(width, height) <= 0:
        return "has an empty box"
    if left >= size[1] or top >= size[0] or left + width <= 0 or top + height <= 0:
        return "has a box outside the image"
    return ""


LABEL_KINDS.add(
    "coco-instances",
    LabelKind(read_objects, look_at_objects, annotations=InstanceAnnotations, file_per_image=False, has_objects=True),
)
