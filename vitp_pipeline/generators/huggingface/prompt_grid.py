"""The points and crops at which Segment Anything's models are asked for masks, and which masks are kept.

Names and defaults are those of `SamAutomaticMaskGenerator` in facebookresearch/segment-anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import product

import numpy as np

from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.geometry import Size, Window

OVERLAP = 512 / 1500
"""Of neighboring crops in the first layer, as a share of the image's shorter side."""


@dataclass(frozen=True)
class PromptGrid:
    """Keys of [generate-proposals] with the same names."""

    points_per_side: int = ProposalSettings.points_per_side
    points_per_batch: int = ProposalSettings.points_per_batch
    pred_iou_thresh: float = ProposalSettings.pred_iou_thresh
    stability_score_thresh: float = ProposalSettings.stability_score_thresh
    stability_score_offset: float = ProposalSettings.stability_score_offset
    box_nms_thresh: float = ProposalSettings.box_nms_thresh
    crop_n_layers: int = ProposalSettings.crop_n_layers
    crop_n_points_downscale_factor: int = ProposalSettings.crop_n_points_downscale_factor

    @classmethod
    def of(cls, settings: ProposalSettings) -> PromptGrid:
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @property
    def enlargement(self) -> int:
        """Ratio of an image's mask cells along a side to those of the whole image without crops."""
        return int(2**self.crop_n_layers)

    @property
    def masks_of_whole(self) -> int:
        """Masks that the whole image is asked for: three at each point."""
        return 3 * self.points_per_side**2

    def points(self, layer: int) -> np.ndarray:
        """Return the points of a crop of a layer: (n, 2) float32 (x, y) in (0, 1), row by row."""
        count = max(1, self.points_per_side // self.crop_n_points_downscale_factor**layer)
        places = (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(count)
        return np.stack([np.tile(places, count), np.repeat(places, count)], 1)

    def crops(self, size: Size) -> list[tuple[int, Window]]:
        """List the crops of a frame of `size`, each with its layer: the whole frame, then 2^n by 2^n of layer n."""
        height, width = size
        found: list[tuple[int, Window]] = [(0, (0, 0, height, width))]
        for layer in range(1, self.crop_n_layers + 1):
            count = 2**layer
            overlap = int(OVERLAP * min(size) * (2 / count))
            rows, columns = (_spans(length, count, overlap) for length in size)
            found += [(layer, (top, left, h, w)) for (left, w), (top, h) in product(columns, rows)]
        return found


def changed_keys(grid: PromptGrid) -> list[str]:
    """Name the keys that differ from their defaults."""
    return [field.name for field in fields(grid) if getattr(grid, field.name) != field.default]


def _spans(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    """Start and extent of `count` overlapping pieces; the last may be cut short by the edge."""
    extent = math.ceil((overlap * (count - 1) + length) / count)
    starts = [(extent - overlap) * i for i in range(count)]
    return [(start, min(extent, length - start)) for start in starts if start < length]
