"""Choice of the images that a report shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EACH = 20
"""Images of each kind; with three kinds at most 60 in all."""


@dataclass(frozen=True)
class Choice:
    """An image to show: its number in the rows, and of which kind."""

    image: int
    kind: str


def choose(gains: np.ndarray, uncertainty: np.ndarray, each: int = EACH) -> list[Choice]:
    """The most improved, the most harmed, and of the others the most uncertain, every image once.

    Args:
        gains: (images,) what fusion changed, nan = not measured.
        uncertainty: (images,) nan = unknown.
        each: how many of a kind.
    Returns:
        per kind the most extreme first; ties to the lower number. Of "improved" only those above 0, of "harmed" below.
    """
    order = np.argsort(-gains, kind="stable")  # nan last
    improved = [i for i in order.tolist() if gains[i] > 0][:each]
    harmed = [i for i in np.argsort(gains, kind="stable").tolist() if gains[i] < 0][:each]
    taken = {*improved, *harmed}
    uncertain = [i for i in np.argsort(-uncertainty, kind="stable").tolist() if np.isfinite(uncertainty[i])]
    uncertain = [i for i in uncertain if i not in taken][:each]
    kinds = {"improved": improved, "harmed": harmed, "uncertain": uncertain}
    return [Choice(i, kind) for kind, images in kinds.items() for i in images]


def choose_worst(accuracy: np.ndarray, uncertainty: np.ndarray, each: int = EACH) -> list[Choice]:
    """Choose the images of lowest accuracy, and of the others the most uncertain, if nothing was fused.

    Args:
        accuracy: (images,) in [0, 1], nan = not measured. uncertainty, each: as `choose`.
    """
    worst = [i for i in np.argsort(accuracy, kind="stable").tolist() if np.isfinite(accuracy[i])][:each]
    uncertain = [i for i in np.argsort(-uncertainty, kind="stable").tolist() if np.isfinite(uncertainty[i])]
    uncertain = [i for i in uncertain if i not in {*worst}][:each]
    return [Choice(i, kind) for kind, images in (("worst", worst), ("uncertain", uncertain)) for i in images]
