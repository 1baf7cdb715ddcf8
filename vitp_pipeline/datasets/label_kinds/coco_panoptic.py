"""COCO panoptic: PNG files of segment ids, and an annotation file that lists the segments."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets.annotations import PanopticAnnotations
from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.label_files import form_of, open_exactly, read_segment_ids, segment_ids
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, Finding, LabelKind, Sample, Split
from vitp_pipeline.datasets.label_kinds.truth import SegmentMap
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size


def _read(dataset: Split, sample: Sample, coarse: bool) -> SegmentMap:
    assert sample.annotation is not None and sample.segments is not None
    segments, listing = sample.segments, sample.annotation.file.path
    ids = read_segment_ids(sample.label, dataset.spec.orientation != "stored")
    listed = {s.id for s in segments} | {0}
    if len(listed) <= len(segments):
        raise InputError(
            f"{listing}: {sample.image.name} lists a segment id twice, or id 0",
            "Download the annotations again",
        )
    known = np.array(sorted(listed))
    unknown = ids[known[np.searchsorted(known, ids).clip(max=len(known) - 1)] != ids]
    if len(unknown):
        raise InputError(
            f"{sample.label}: segment id {unknown.min()} is not in {listing}",
            "PNG folder and JSON must be of the same release",
        )
    return SegmentMap(ids, segments)


def _extent(dataset: Split, sample: Sample) -> tuple[Size, str]:
    label = open_image(sample.label, "label image")
    return label.upright_size, "upright" if label.orientation else ""


def _look(dataset: Split, sample: Sample, found: Finding) -> None:
    found.require_listed_size(sample)
    segments = sample.segments or ()
    image = open_exactly(sample.label, "panoptic image")
    found.label_mode, found.label_orientation = form_of(image), image.orientation or 1
    ids = segment_ids(image, dataset.spec.orientation != "stored")
    found.require_size(sample.label, (ids.shape[0], ids.shape[1]))
    numbers, counts = np.unique(ids, return_counts=True)
    pixels = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    found.void = pixels.pop(0, 0)
    for segment in segments:
        label = dataset.spec.classes[segment.category].label
        found.objects[label] += 1
        found.values[label] += pixels.pop(segment.id, 0)
    if empty := [s.id for s in segments if s.id not in set(numbers.tolist())]:
        found.odd.append(f"{sample.label}: {len(empty)} listed segments have no pixel (first: {empty[0]})")
    if pixels:
        reason = f"{len(pixels)} segment ids are not in the annotation file (first: {min(pixels)})"
        found.broken.append((sample.label, f"{sample.label}: {reason}"))
    if len({s.id for s in segments} | {0}) <= len(segments):
        found.broken.append(
            (sample.label, f"{sample.image.name}: the annotation file lists a segment id twice, or id 0")
        )


LABEL_KINDS.add("coco-panoptic", LabelKind(_read, _look, _extent, annotations=PanopticAnnotations, has_segments=True))
