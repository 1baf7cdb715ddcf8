"""Lossy mask compression and its error bound (docs/storage.md has the proofs).

Points are chosen before compression and class logits are stored in full, so only maps drawn from masks can change.
The steps, all off with `masks = "lossless"`:

    drop_below       drop the least likely masks while their summed objectness Σ(1−v) stays below this
    drop_threshold   drop masks that no panoptic map with an object threshold of at least this can show
    floor            raise far background to this logit
    step             logits rounded to multiples of it (`artifacts.quantized_array`); else they are of `mask_dtype`
    graded           of larger ones where a pixel reads nothing but background, or nothing but the mask's inside

What was done is kept for every image as a `MaskLoss`, from which `postprocess.certainty` bounds every class score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.quantized_array import MOST_STEPS

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-6
"""Of the fused probabilities, float32: a mask is dropped by `drop_threshold` only when it is below by more."""


@dataclass(frozen=True)
class MaskCodec:
    """Mask compression keys of [generate-proposals]; the defaults store all masks exactly."""

    drop_below: float = 0.0
    drop_threshold: float = 0.0
    mask_dtype: str = "float32"
    floor: float = 0.0
    step: float = 0.0
    graded: bool = False

    @classmethod
    def said_by(cls, identity: dict[str, Any]) -> MaskCodec:
        """Build the codec of a run from the settings in its identity, which omit defaults."""
        return cls(**{name: identity.get(name, default) for name, default in PRESETS["bounded"].items()})

    @property
    def keeps_all(self) -> bool:
        """True if every mask reads back exactly as the generator gave it."""
        return self == MaskCodec()


_SMALLER: dict[str, Any] = {"step": 1 / 128, "graded": True}
PRESETS: dict[str, dict[str, Any]] = {
    name: asdict(MaskCodec(**keys))
    for name, keys in {
        "lossless": {},
        "panoptic-exact": {"drop_threshold": 0.8},
        "bounded": {"drop_below": 0.001, "floor": -8.0, **_SMALLER},
        "compact": {"drop_below": 0.003, "floor": -6.0, **_SMALLER},
    }.items()
}
"""Keys of [generate-proposals] that `masks = "…"` sets, by default those of "bounded"; keys set explicitly override
them.
"""


@dataclass(frozen=True)
class MaskLoss:
    """Error bound of an image's stored masks against the generator's.

    Attributes:
        logit_error: the most that a stored logit differs, where it was not floored; measured.
        floor: the level that far background was raised to; None = no flooring.
        ring: neighborhood radius in cells that decided flooring and coarser rounding.
        step: quantization step of logits near 0; 0 = not quantized.
    """

    logit_error: float = 0.0
    floor: float | None = None
    ring: int = 0
    step: float = 0.0

    @property
    def graded(self) -> bool:
        """True if some masks were rounded to larger steps."""
        return self.step > 0 and self.logit_error > self.step / 2

    def errors(self, logits: Tensor) -> Tensor | float:
        """Bound how far a logit that a pixel reads may differ from the generator's, given its stored value.

        Args:
            logits: of cells or upsampled, of any shape; what lies at the floor may be lower by any amount.
        """
        if not self.graded:
            return self.logit_error
        # cells that are all 3 away from 0, say, have means that are: but for rounding
        depth = (logits.abs() + _ROUNDED_MEAN).clamp_(1.0, float(_deepest(self.step))).floor_().sub_(1.0)
        return depth.exp2_().mul_(self.step / 2).clamp_max_(self.logit_error)


@dataclass(frozen=True)
class StoredMasks:
    """The masks as they are stored: (M, h, w) float32, or without a step of `codec.mask_dtype`; which queries they are
    (M,) int32 ascending, Σ(1−v) of the others, and what was lost.
    """

    masks: np.ndarray
    kept: np.ndarray
    dropped_mass: float
    loss: MaskLoss


def keep_queries(objectness: np.ndarray, budget: float, threshold: float = 0.0) -> tuple[np.ndarray, float]:
    """Select the masks to store: the likeliest, until the rest together may matter less than the budget.

    Args:
        objectness: (Q,) 1 − v of every query.
        budget: largest Σ(1−v) of the dropped ones; 0 keeps all.
        threshold: masks whose 1 − v is at most this (less rounding) are dropped in any case; 0 = none.
    Returns:
        (ascending indices of the kept, Σ(1−v) of the dropped). Ties keep the lower index.
    """
    objectness = np.asarray(objectness, np.float64)
    kept = np.ones(len(objectness), bool)
    if budget > 0:
        order = np.argsort(-objectness, kind="stable")
        # mass of everything from position i on
        tail = np.cumsum(objectness[order][::-1])[::-1]
        count = int(np.count_nonzero(tail > budget))  # tail falls, so these are the first ones
        kept[order[count:]] = False
    if threshold > 0:
        kept &= objectness > threshold - ROUNDING
    return np.flatnonzero(kept).astype(np.int32), float(objectness[~kept].sum())


def store_masks(mask_logits: Tensor, objectness: np.ndarray, codec: MaskCodec, ring: int) -> StoredMasks:
    """Drop, floor and quantize masks, on the device of the logits.

    Args:
        mask_logits: (Q, h, w) float32, finite.
        objectness: (Q,) 1 − v of every query.
        ring: how far apart the cells lie that one pixel reads: `postprocess.upsample.source_reach`.
    """
    import torch

    kept, dropped = keep_queries(objectness, codec.drop_below, codec.drop_threshold)
    true = mask_logits[torch.from_numpy(kept).long().to(mask_logits.device)]
    largest = _largest(true)
    if largest > MOST_STEPS * codec.step > 0 and codec.floor:
        largest = _largest(true.masked_fill(is_far(true, codec.floor, ring), codec.floor))
    # where logits are so large that float32 has no steps so small, an image keeps its floats
    step = codec.step if largest <= MOST_STEPS * codec.step else 0.0
    graded = codec.graded and step > 0
    kind = "float32" if step else codec.mask_dtype
    stored, errors = torch.empty_like(true, dtype=getattr(torch, kind)), [0.0]
    some = max(1, _CACHED // max(1, true[0].numel())) if len(true) else 1
    for start in range(0, len(true), some):
        part = true[start : start + some]
        rounded = _rounded(part, step, ring if graded else None)
        far = is_far(part, codec.floor, ring) if codec.floor else None
        if far is not None:
            rounded.masked_fill_(far, codec.floor)
        if kind != "float32":
            limit = float(np.finfo(kind).max)  # of float16 65504: no sigmoid can tell larger ones apart
            rounded.clamp_(-limit, limit)
        stored[start : start + some] = rounded
        error = stored[start : start + some].float() - part
        if far is not None:
            error.masked_fill_(far, 0.0)
        errors.append(_largest(error))
    loss = MaskLoss(max(errors), codec.floor or None, ring if codec.floor or graded else 0, step)
    return StoredMasks(stored.cpu().numpy(), kept, dropped, loss)


_CACHED = 2**18
"""Cells processed at a time: their intermediate results fit in a core's cache."""
_ROUNDED_MEAN = 1e-4
"""Float32 rounding bound of a mean of logits of equal sign, no larger than 16."""


def _deepest(step: float) -> int:
    """Return the index where steps stop growing: they are 1 there, so no integer lies between two multiples."""
    return 1 - round(math.log2(step))


def _rounded(masks: Tensor, step: float, ring: int | None) -> Tensor:
    """Round (Q, h, w) logits to multiples of a step, as a copy.

    With a ring the step doubles with every whole number between 0 and the nearest to it of the logits within so many
    cells, from 2 on; where they have both signs that is none.
    """
    import torch

    if not step:
        return masks.clone()
    if ring is None:
        return (masks * (1 / step)).round_().mul_(step)
    deepest = _deepest(step)
    whole = masks.clamp(-deepest, deepest).to(torch.int8)  # rounds toward 0
    depth = torch.maximum(within(whole, ring, torch.minimum), -within(whole, ring, torch.maximum))
    steps = (depth.clamp_(min=1) - 1).float().exp2_().mul_(step)
    return (masks / steps).round_().mul_(steps)


def within(cells: Tensor, ring: int, least: Callable[..., Tensor]) -> Tensor:
    """Take the minimum within `ring` cells of each cell, diagonals too, (Q, h, w); the maximum by `torch.maximum`."""
    for axis in (1, 2):  # a square grows by one cell at a time, along rows, then along columns
        for _ in range(ring):
            grown, length = cells.clone(), cells.shape[axis] - 1
            for to, of in ((1, 0), (0, 1)):
                piece = grown.narrow(axis, to, length)
                least(piece, cells.narrow(axis, of, length), out=piece)
            cells = grown
    return cells


def _largest(values: Tensor) -> float:
    """Return the largest absolute value; 0 for an empty tensor."""
    return max(abs(float(end)) for end in values.aminmax()) if values.numel() else 0.0


def is_far(mask_logits: Tensor, floor: float, ring: int) -> Tensor:
    """Mark cells that lie below the floor with all cells within `ring` of them, diagonals included: (Q, h, w) bool."""
    import torch

    return ~within(mask_logits >= floor, ring, torch.logical_or)


def loss_of(masks: np.ndarray, known: MaskLoss | None) -> MaskLoss:
    """Return an image's error bound, also where the index has none (imported masks): rounding alone.

    float16 has 11 significant bits: half the spacing at the largest logit bounds the error of all.
    """
    if known is not None or masks.dtype != np.float16 or not masks.size:
        return known or MaskLoss()
    largest = np.float16(np.abs(masks).max())
    clipped = largest >= np.finfo(np.float16).max
    return MaskLoss(float("inf") if clipped else float(np.spacing(largest)) / 2)
