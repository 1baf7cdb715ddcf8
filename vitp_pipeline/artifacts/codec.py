"""What of an image's masks is stored, and how far it may lie from the truth (docs/storage.md has the proofs).

Points are chosen before any of it, and class logits are stored whole, so only what is drawn from masks can change:

    drop_below       the masks that matter least, as many that Σ(1−v) over them stays below it
    drop_threshold   every mask that no panoptic map with an object threshold of at least this can show
    floor            far background, raised to this logit
    step             logits rounded to multiples of it (`artifacts.steps`); else they are of `mask_dtype`

What was done is kept for every image as a `MaskLoss`, from which `assemble.certain` bounds every class score.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.steps import MOST_STEPS

if TYPE_CHECKING:
    from torch import Tensor

    from vitp_pipeline.recipe import ProposalSettings

PRESETS: dict[str, dict[str, Any]] = {
    "lossless": {"drop_below": 0.0, "mask_dtype": "float32"},
    "panoptic-exact": {"drop_below": 0.0, "mask_dtype": "float32", "drop_threshold": 0.8},
    "bounded": {"drop_below": 0.001, "mask_dtype": "float32", "floor": -8.0, "step": 1 / 256},
    "compact": {"drop_below": 0.003, "mask_dtype": "float32", "floor": -6.0, "step": 1 / 128},
}
"""Keys of [generate-proposals] that `masks = "…"` stands for; one that is said beside it counts."""

FREE = ("auto", "keys")
"""Values of `masks` that are no preset: `bounded` for a new run, or what the keys say and nothing else."""

NEW_RUN = "bounded"
ROUNDING = 1e-6
"""Of the fused probabilities, float32: a mask is dropped by `drop_threshold` only when it is below by more."""


@dataclass(frozen=True)
class MaskCodec:
    """The keys of [generate-proposals] that say what of the masks is stored; 0 = do not."""

    drop_below: float = 0.01
    drop_threshold: float = 0.0
    mask_dtype: str = "float16"
    floor: float = 0.0
    step: float = 0.0

    @classmethod
    def of(cls, settings: ProposalSettings) -> MaskCodec:
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @classmethod
    def said_by(cls, identity: dict[str, Any]) -> MaskCodec:
        """Of a run, from the settings in its identity, which lack those that have their default."""
        return cls(**{field.name: identity.get(field.name, field.default) for field in fields(cls)})

    @property
    def keeps_all(self) -> bool:
        """Whether every mask can be read as the generator gave it."""
        return self == MaskCodec(**PRESETS["lossless"])


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Keys of [generate-proposals], those that `masks` stands for put under the ones that are said.

    Where keys are said and `masks` is not, the keys alone count.
    """
    own = [field.name for field in fields(MaskCodec)]
    if "masks" not in values and any(name in values for name in own):
        return {**values, "masks": "keys"}
    return {**PRESETS.get(str(values.get("masks")), {}), **values}


def settle(settings: ProposalSettings, begun: bool) -> ProposalSettings:
    """What `masks = "auto"` means: `bounded`, unless the run was begun without (by an older version).

    Args:
        begun: whether there is a run that these settings, taken as they are, belong to.
    """
    if settings.masks != "auto" or begun or MaskCodec.of(settings) != MaskCodec():
        return settings
    return replace(settings, masks=NEW_RUN, **PRESETS[NEW_RUN])


@dataclass(frozen=True)
class MaskLoss:
    """How far the stored masks of an image may lie from the generator's.

    Attributes:
        logit_error: the most that a stored logit differs, where it was not floored; measured.
        floor: the level that far background was raised to; None = nothing was.
        ring: a cell was floored only when all within so many cells of it lie below the floor.
        step: what logits were rounded to multiples of; 0 = they are floats.
    """

    logit_error: float = 0.0
    floor: float | None = None
    ring: int = 0
    step: float = 0.0


@dataclass(frozen=True)
class StoredMasks:
    """The masks as they are stored: (M, h, w) of `codec.mask_dtype`, which queries they are (M,) int32 ascending,
    Σ(1−v) of the others, and what was lost.
    """

    masks: np.ndarray
    kept: np.ndarray
    dropped_mass: float
    loss: MaskLoss


def keep_queries(present: np.ndarray, budget: float, threshold: float = 0.0) -> tuple[np.ndarray, float]:
    """Which masks to store: the likeliest, until the rest together may matter less than the budget.

    Args:
        present: (Q,) 1 − v of every query.
        budget: largest Σ(1−v) of the dropped ones; 0 keeps all.
        threshold: those whose 1 − v is at most this (less rounding) are dropped whatever they sum to; 0 = none.
    Returns:
        (ascending indices of the kept, Σ(1−v) of the dropped). Ties keep the lower index.
    """
    present = np.asarray(present, np.float64)
    kept = np.ones(len(present), bool)
    if budget > 0:
        order = np.argsort(-present, kind="stable")
        # mass of everything from position i on
        tail = np.cumsum(present[order][::-1])[::-1]
        count = int(np.count_nonzero(tail > budget))  # tail falls, so these are the first ones
        kept[order[count:]] = False
    if threshold > 0:
        kept &= present > threshold - ROUNDING
    return np.flatnonzero(kept).astype(np.int32), float(present[~kept].sum())


def store_masks(mask_logits: Tensor, present: np.ndarray, codec: MaskCodec, ring: int) -> StoredMasks:
    """Drops, floors and rounds, on the device of the logits.

    Args:
        mask_logits: (Q, h, w) float32, finite.
        present: (Q,) 1 − v of every query.
        ring: cells around anything above the floor that stay as they are: `assemble.upsample.source_reach`.
    """
    import torch

    kept, dropped = keep_queries(present, codec.drop_below, codec.drop_threshold)
    true = mask_logits[torch.from_numpy(kept).long().to(mask_logits.device)]
    stored, far = true, None
    if codec.floor:
        far = is_far(true, codec.floor, ring)
        stored = true.masked_fill(far, codec.floor)
    # where logits are so large that float32 has no steps so small, an image keeps its floats
    step = codec.step if _largest(stored) <= MOST_STEPS * codec.step else 0.0
    if step:
        stored = (stored * (1 / step)).round_().mul_(step)
    if codec.mask_dtype != "float32":
        limit = float(np.finfo(codec.mask_dtype).max)  # of float16 65504: no sigmoid can tell a larger logit from it
        stored = stored.clamp(-limit, limit).to(getattr(torch, codec.mask_dtype))
    error = stored.float() - true
    if far is not None:
        error.masked_fill_(far, 0.0)
    loss = MaskLoss(_largest(error), codec.floor if codec.floor else None, ring if codec.floor else 0, step)
    return StoredMasks(stored.cpu().numpy(), kept, dropped, loss)


def _largest(values: Tensor) -> float:
    """The largest absolute value; 0 of none."""
    return max(abs(float(end)) for end in values.aminmax()) if values.numel() else 0.0


def is_far(mask_logits: Tensor, floor: float, ring: int) -> Tensor:
    """(Q, h, w) bool: whether a cell and all within `ring` cells of it, diagonals too, lie below the floor."""
    near = mask_logits >= floor
    for _ in range(ring):  # a square grows by one cell at a time, along rows, then along columns
        for axis in (1, 2):
            grown, length = near.clone(), near.shape[axis] - 1
            grown.narrow(axis, 1, length).logical_or_(near.narrow(axis, 0, length))
            grown.narrow(axis, 0, length).logical_or_(near.narrow(axis, 1, length))
            near = grown
    return ~near


def loss_of(masks: np.ndarray, known: MaskLoss | None) -> MaskLoss:
    """What was lost, also where the index does not say (older versions, imported masks): rounding alone.

    float16 has 11 significant bits: half the spacing at the largest logit bounds the error of all.
    """
    if known is not None or masks.dtype != np.float16 or not masks.size:
        return known or MaskLoss()
    largest = np.float16(np.abs(masks).max())
    clipped = largest >= np.finfo(np.float16).max
    return MaskLoss(float("inf") if clipped else float(np.spacing(largest)) / 2)
