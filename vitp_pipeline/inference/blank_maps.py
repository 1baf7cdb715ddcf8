"""Panoptic maps that are nearly blank, and the masks that a lower `object_threshold` would let in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.runtime.progress import say

if TYPE_CHECKING:
    from vitp_pipeline.inference.predictor import Segmentation

NEARLY_BLANK = 0.1
"""Smallest share of pixels in segments of a map that is not reported."""
NEAR = 0.5
"""Masks whose score is at least this share of the threshold are named."""
SHOWN = 5


@dataclass(frozen=True)
class BlankMap:
    """A panoptic map with few pixels in segments.

    Attributes:
        share: of its pixels that are in a segment, [0, 1].
        near: class and score of the masks that the threshold left out, if only just; the best first.
    """

    image: Path
    share: float
    near: tuple[tuple[str, float], ...]


def blank_map(image: Path, found: Segmentation, threshold: float) -> BlankMap | None:
    """Return what is to be said of an image whose panoptic map is nearly blank; None for any other."""
    if found.ids is None or (share := float(np.count_nonzero(found.ids) / found.ids.size)) >= NEARLY_BLANK:
        return None
    masks = sorted((mask.fused for mask in found.masks), key=lambda fused: -fused.score)
    near = ((found.classes[m.category], round(m.score, 5)) for m in masks if NEAR * threshold <= m.score <= threshold)
    return BlankMap(image, share, tuple(near))


def report_blank_maps(blank: Sequence[BlankMap], of: int, threshold: float) -> None:
    """Say once how many maps are nearly blank, and where a lower threshold would help."""
    if not blank:
        return
    which = "the panoptic map" if of == 1 else f"{len(blank)} of {of} panoptic maps"
    verb = "is" if len(blank) == 1 else "are"
    about = f"predict: {which} {verb} nearly blank (less than {NEARLY_BLANK:.0%} in segments)"
    best = max(blank, key=lambda each: each.near[0][1] if each.near else 0.0)
    if not best.near:
        say(f"{about}: no other mask comes near object_threshold = {threshold:g}")
        return
    lower = max(0.01, int(100 * best.near[:SHOWN][-1][1]) / 100 - 0.01)
    named = ", ".join(f"{name} {score:.2f}" for name, score in best.near[:SHOWN])
    more = f" and {len(best.near) - SHOWN} more" if len(best.near) > SHOWN else ""
    say(f"{about}: object_threshold = {threshold:g} left out {named}{more} of {best.image.name}")
    say(f"  to see them, lower it: --set object_threshold={lower:.2f} --overwrite")
