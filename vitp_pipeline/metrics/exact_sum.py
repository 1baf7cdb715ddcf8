"""Exact sums of IoUs, independent of the order of images and of the split into parts, in constant memory."""

from __future__ import annotations

import numpy as np

_FRACTION = 53
_LOW = 26


class IouSums:
    """Sums of what one image adds: 0, or a sum of IoUs above 1/2, hence a multiple of 2⁻⁵³ in float64.

    Held as integers (whole part, 27 and 26 bits of the fraction: each has room for 2³⁶ images), so nothing is rounded
    before `totals`, which gives what `math.fsum` over all of them would.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._limbs = np.zeros((3, *shape), np.int64)

    def add(self, at: tuple[np.ndarray, ...], values: np.ndarray) -> None:
        """Add (E,) float64 values at indices, of which some may be equal.

        Raises:
            ValueError: a value is negative or no multiple of 2⁻⁵³.
        """
        whole = np.floor(values)
        fraction = (values - whole) * 2.0**_FRACTION
        bits = fraction.astype(np.int64)
        if (values < 0).any() or (bits != fraction).any():
            raise ValueError("not sums of IoUs above 1/2")
        parts = whole.astype(np.int64), bits >> _LOW, bits & ((1 << _LOW) - 1)
        for limb, part in zip(self._limbs, parts, strict=True):
            np.add.at(limb, at, part)

    @property
    def limbs(self) -> np.ndarray:
        """(3, *shape) int64; those of several can be added up."""
        return self._limbs

    def totals(self, at: int | tuple[int, ...] = ()) -> np.ndarray:
        """The sums, or those at some indices, float64, each rounded once."""
        whole, high, low = (np.asarray(limb[at]).astype(object) for limb in self._limbs)
        fixed = (whole << _FRACTION) + (high << _LOW) + low
        return np.array([n / (1 << _FRACTION) for n in fixed.ravel()], np.float64).reshape(fixed.shape)
