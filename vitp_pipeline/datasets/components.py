"""Segments for labels without any: connected components stand in for instances, and are reported as such."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets.annotations import GroundTruthSegment
from vitp_pipeline.datasets.regions import connected_regions


def component_segments(labels: np.ndarray, things: np.ndarray) -> tuple[np.ndarray, list[GroundTruthSegment]]:
    """Make a panoptic ground truth from class labels: every connected component of a thing class is an instance.

    Pieces below 0.05 % of the image (`connected_regions`) become void; objects that touch become one, and one that is
    partly hidden becomes several.

    Args:
        labels: (H, W) class indices or IGNORE.
        things: (K,) bool.
    Returns:
        ((H, W) int32 segment ids with 0 = void, the segments): as `Dataset.read_panoptic` returns them.
    """
    things = np.asarray(things, bool)
    numbers, classes = connected_regions(labels)
    ids = np.zeros(labels.shape, np.int32)
    segments: list[GroundTruthSegment] = []
    for number in np.flatnonzero(things[classes]):
        segments.append(GroundTruthSegment(len(segments) + 1, int(classes[number]), False))
        ids[numbers == number] = segments[-1].id
    for k in np.unique(labels[labels >= 0]):
        if not things[k]:
            segments.append(GroundTruthSegment(len(segments) + 1, int(k), False))
            ids[labels == k] = segments[-1].id
    return ids, segments
