"""Mixture of annotations that a classifier is trained on: `data = ["fine=3", "coarse=1"]`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitp_pipeline.config.choices import ANNOTATIONS
from vitp_pipeline.errors import UsageError


@dataclass(frozen=True)
class Mixture:
    """Kinds of annotation and how often an image is seen with each; the shares sum to 1."""

    kinds: tuple[str, ...] = ("fine",)
    shares: tuple[float, ...] = (1.0,)

    @property
    def has_boxes(self) -> bool:
        return "boxes" in self.kinds

    def order(self, rng: np.random.Generator) -> list[str]:
        """Order all kinds, a random one first: the others are fallbacks for images that lack it."""
        if len(self.kinds) == 1:
            return list(self.kinds)
        first = self.kinds[int(rng.choice(len(self.kinds), p=self.shares))]
        return [first, *(kind for kind in self.kinds if kind != first)]


def parse_mixture(words: tuple[str, ...]) -> Mixture:
    """Parse a mixture: `("fine=3", "coarse=1")` uses fine masks three of four times; without `=` all shares are equal.

    Raises:
        UsageError: an empty list, an unknown kind, a repeated kind, or a share that is not a positive number.
    """
    shares: dict[str, float] = {}
    for word in words:
        kind, _, text = word.partition("=")
        kind = kind.strip()
        if kind not in ANNOTATIONS:
            raise UsageError(f"data = {list(words)}: no kind {kind!r}", f"Choose among: {', '.join(ANNOTATIONS)}")
        if kind in shares:
            raise UsageError(f"data = {list(words)} names {kind!r} twice")
        try:
            shares[kind] = float(text) if "=" in word else 1.0
        except ValueError:
            shares[kind] = 0.0
        if not 0.0 < shares[kind] < float("inf"):
            raise UsageError(f"data: the share in {word!r} is not a positive number", 'For example "fine=0.5"')
    if not shares:
        raise UsageError("data = [] names nothing to train on", f"Choose among: {', '.join(ANNOTATIONS)}")
    total = sum(shares.values())
    return Mixture(tuple(shares), tuple(share / total for share in shares.values()))
