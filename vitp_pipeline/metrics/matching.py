"""How often a mask gets its right name, whatever its shape."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError


class NamingAccuracy:
    """Of the masks that claim an object (1 − v > threshold) and have a label, the share named rightly.

    Labels come from `assemble.labels`, usually the majority. The chosen masks depend on the generator alone,
    so two classifiers, or two α, are judged on the same ones.

    Attributes:
        counts: (K, K) int64, rows label, columns the class of the largest score. Adds up over images and
            shards.
    """

    def __init__(self, num_classes: int, threshold: float = 0.5, counts: np.ndarray | None = None) -> None:
        self.num_classes = num_classes
        self.threshold = threshold
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        if counts is not None:
            if np.shape(counts) != self.counts.shape:
                raise IncompatibleError(f"naming counts {np.shape(counts)} for {num_classes} classes")
            self.counts += np.asarray(counts, np.int64)

    def update(self, scores: Tensor | np.ndarray, void: Tensor | np.ndarray, labels: np.ndarray) -> None:
        """Adds the masks of one image.

        Args:
            scores: (Q, K) class probabilities or logits (without void); ties to the lowest class.
            void: (Q,) the *generator's* probability of no object.
            labels: (Q,) integers in 0..K−1, or IGNORE: such a mask does not count.
        Raises:
            IncompatibleError: shapes disagree.
        """
        scores, void, labels = _numpy(scores), _numpy(void), _numpy(labels)
        if scores.shape != (len(labels), self.num_classes) or void.shape != labels.shape:
            raise IncompatibleError(f"scores {scores.shape}, void {void.shape}, labels {labels.shape} do not fit")
        chosen = (1.0 - void > self.threshold) & (labels != IGNORE)
        np.add.at(self.counts, (labels[chosen], scores[chosen].argmax(1)), 1)

    def merge(self, other: NamingAccuracy) -> None:
        """Adds another state; IncompatibleError when classes or threshold differ."""
        if (other.num_classes, other.threshold) != (self.num_classes, self.threshold):
            raise IncompatibleError("naming accuracies of different classes or thresholds do not add")
        self.counts += other.counts

    @property
    def right(self) -> int:
        return int(np.trace(self.counts))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def accuracy(self) -> float:
        """right / total in [0, 1]; nan without masks."""
        return self.right / self.total if self.total else float("nan")


def _numpy(array: Tensor | np.ndarray) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
