"""Check that stored masks suffice, and count pixels whose label provably does not depend on mask compression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.mask_codec import MaskCodec, loss_of
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.evaluation.map_metrics import MAP_METRICS, MapMetric, MeasuredImage

if TYPE_CHECKING:
    import torch

    from vitp_pipeline.artifacts.proposals import ProposalRecord
    from vitp_pipeline.config.settings import EvaluateSettings

FIELDS = {"certain": "int64", "pixels": "int64"}
"""Column `certain` of a row: pixels whose label provably does not depend on mask compression, and all pixels."""


def check_codec(codec: MaskCodec, settings: EvaluateSettings, tasks: tuple[str, ...]) -> None:
    """Raise IncompatibleError when the store lacks masks that a panoptic map with this object threshold needs."""
    if "panoptic" in tasks and settings.object_threshold < codec.drop_threshold:
        raise IncompatibleError(
            f"object_threshold = {settings.object_threshold}: the proposals hold only masks that may reach "
            f"{codec.drop_threshold}",
            f"Raise it, or generate proposals with drop_threshold = {settings.object_threshold} under another --out",
        )


def certain_pixels(record: ProposalRecord, masks: torch.Tensor, probs: torch.Tensor, kept: torch.Tensor) -> np.ndarray:
    """(H0, W0) bool: pixels whose label provably does not depend on mask compression. probs: (Q, K), of all queries.

    (1, N) where the record's view is of groups of pixels.
    """
    from vitp_pipeline.postprocess.certainty import certain_map

    loss = loss_of(record.masks, record.loss)
    return certain_map(masks, probs, kept, record.view, record.protocol, loss)


def _count(image: MeasuredImage) -> list[np.ndarray]:
    """Count for the headline variant; `check_views` ensures a single view."""
    (view,), evaluation = image.views, image.evaluation
    found = certain_pixels(
        view.record, view.masks, view.probs[evaluation.variants.index(evaluation.headline)], view.kept
    )
    if view.pixels is not None:
        return [np.array([view.pixels[found[0]].sum()]), np.array([view.pixels.sum()])]
    return [np.array([found.sum()]), np.array([found.size])]


def _add(total: np.ndarray, entries: Mapping[str, np.ndarray]) -> None:
    total += [entries[name].sum() for name in FIELDS]


def certain_share(total: np.ndarray) -> dict[str, Any]:
    """Return the entry of the result, from the sums of the column."""
    certain, pixels = map(int, total)
    return {"share": certain / pixels if pixels else None, "uncertain": pixels - certain, "pixels": pixels}


MAP_METRICS.add(
    "certain",
    MapMetric(
        lambda settings: settings.certain,
        FIELDS,
        _count,
        lambda variants, classes: np.zeros(len(FIELDS), np.int64),
        _add,
        lambda evaluation, total, names: {"certain": certain_share(total)},
    ),
)
