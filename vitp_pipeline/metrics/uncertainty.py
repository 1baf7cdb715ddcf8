"""Uncertainty of an image: which images are worth a person's time first.

| order | of a mask, in [0, 1] |
|---|---|
| `disagreement` | total variation of generator's and classifier's class probabilities, ½ Σ_k abs(in_k − out_k) |
| `entropy` | entropy of its fused class probabilities, over log K |

An image's is the mean over its masks with objectness 1 − v above 0.5, or over all where there is none, weighted by
objectness.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ORDERS = ("disagreement", "entropy")
SURE = 0.5
"""Objectness above which a mask counts."""


def disagreement(class_logits: Tensor, point_logits: Tensor) -> float:
    """Return how far generator and classifier are apart on an image's masks, in [0, 1]; 0 without masks.

    Args:
        class_logits: (Q, K+1) floats, no object last. point_logits: (Q, K) floats.
    """
    generator, classifier = class_logits.double()[:, :-1].softmax(-1), point_logits.double().softmax(-1)
    apart = (generator - classifier).abs().sum(-1) / 2
    return _mean(apart, 1 - class_logits.double().softmax(-1)[:, -1])


def entropy(probs: Tensor, no_object: Tensor) -> float:
    """Return how undecided the class of an image's masks is, in [0, 1]; 0 without masks.

    Args:
        probs: (Q, K) floats, fused class probabilities. no_object: (Q,) floats, the rest to 1.
    """
    given = probs.double()
    given = given / given.sum(-1, keepdim=True).clamp_min(1e-300)
    bits = -(given * given.clamp_min(1e-300).log()).sum(-1) / math.log(max(2, given.shape[-1]))
    return _mean(bits, 1 - no_object.double())


def _mean(values: Tensor, objectness: Tensor) -> float:
    """Return the mean of (Q,) values, weighted by (Q,) objectness of the masks that count."""
    weights = objectness * (objectness > SURE)
    if not weights.any():
        weights = objectness
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total > 0 else 0.0
