"""Registry of policies that choose the pixels representing a mask; `points` implements them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp_pipeline.config.generate_proposals import POINT_POLICIES, MasksOfView, PointPolicy, ProposalSettings
from vitp_pipeline.errors import InputError


def choose_points(
    masks: MasksOfView, settings: ProposalSettings, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Choose points by each policy in the settings, as in a `ProposalRecord`: (Q·n, 2) int32 each.

    Args:
        names: of some of these policies; None = all.
    """
    chosen = settings.points if names is None else names
    return {name: POINT_POLICIES[name].choose(masks, settings).reshape(-1, 2) for name in chosen}


def _max(masks: MasksOfView, settings: ProposalSettings) -> np.ndarray:
    """The highest logit; inside a binary mask all are alike, and the deepest pixel is taken."""
    from vitp_pipeline.postprocess.points import max_points

    if masks.binary:
        return _center(masks, settings)
    return max_points(masks.logits, masks.view, masks.protocol, settings.max_at)[:, None]


def _center(masks: MasksOfView, settings: ProposalSettings) -> np.ndarray:
    from vitp_pipeline.postprocess.points import center_points

    return center_points(masks.logits, masks.view, masks.protocol)[:, None]


def _random(masks: MasksOfView, settings: ProposalSettings, count: int = 1) -> np.ndarray:
    from vitp_pipeline.postprocess.points import multi_points

    return multi_points(masks.logits, masks.view, masks.protocol, masks.name, count, settings.seed, masks.first)


def _several_random(masks: MasksOfView, settings: ProposalSettings) -> np.ndarray:
    return _random(masks, settings, settings.multi)


def _local_maxima(masks: MasksOfView, settings: ProposalSettings) -> np.ndarray:
    from vitp_pipeline.postprocess.points import local_maxima_points

    if masks.binary:
        raise InputError("binary masks have no local maxima", "Leave local_maxima out of `points`, or import logits")
    return local_maxima_points(masks.logits, masks.view, masks.protocol, settings.local_maxima, settings.max_at)


POINT_POLICIES.add("max", PointPolicy(_max, local=True))
POINT_POLICIES.add("center", PointPolicy(_center, local=True))
POINT_POLICIES.add("random", PointPolicy(_random, local=True))
POINT_POLICIES.add("multi", PointPolicy(_several_random, lambda settings: settings.multi, local=True))
# few chosen points: one that disagrees is more informative than a random pixel
POINT_POLICIES.add(
    "local_maxima", PointPolicy(_local_maxima, lambda settings: settings.local_maxima, "log-probabilities")
)
