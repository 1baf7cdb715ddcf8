"""A linear head in closed form: linear discriminant analysis of the frozen backbone's features.

With few images and many classes it names points better than the same head trained by gradient: the features of a ViT
are strongly correlated, and dividing by their covariance within the classes is what gradient descent does not get to in
a short training. Points of one image are not independent, so the scores come out far too sure; their scale is fitted
afterwards.
"""

from __future__ import annotations

import numpy as np

from vitp_pipeline.errors import UserError


class DiscriminantStatistics:
    """Sums over training points that determine the head; float64, so that the order of points hardly matters.

    Args:
        classes: K.
        width: D, numbers per feature.
    """

    def __init__(self, classes: int, width: int) -> None:
        self.count = np.zeros(classes)
        self.sum = np.zeros((classes, width))
        self.square = np.zeros((width, width))

    def update(self, features: np.ndarray, classes: np.ndarray) -> None:
        """Adds points: features (P, D) float, classes (P,) integers in [0, K)."""
        features = features.astype(np.float64)
        np.add.at(self.count, classes, 1)
        np.add.at(self.sum, classes, features)
        self.square += features.T @ features

    def head(self, shrinkage: float, class_prior: float) -> tuple[np.ndarray, np.ndarray]:
        """The discriminant: logits = features @ weight.T + bias.

        Args:
            shrinkage: λ: the covariance within the classes gets λ times the features' overall variances added to its
                diagonal.
            class_prior: how much of log(class frequency) to leave out: 0 = all of it counts, 1 = classes count alike.
        Returns:
            weight (K, D) and bias (K,) float32. A class without points has weight 0 and a bias that never wins.
        Raises:
            UserError: no points.
        """
        total = self.count.sum()
        if not total:
            raise UserError("training: no point to learn from")
        seen = self.count > 0
        mean = self.sum.sum(0) / total
        means = self.sum / np.maximum(self.count, 1)[:, None]
        overall = self.square / total - np.outer(mean, mean)
        between = (means - mean)[seen].T @ ((means - mean)[seen] * (self.count[seen] / total)[:, None])
        within = overall - between + shrinkage * np.diag(np.maximum(np.diag(overall), 1e-8))
        centred = (means - mean) * seen[:, None]
        weight = np.linalg.solve(within, centred.T).T
        bias = -0.5 * (weight * centred).sum(1) - weight @ mean
        bias[seen] += (1 - class_prior) * np.log(self.count[seen] / total)
        bias[~seen] = bias[seen].min() - 1e4
        return weight.astype(np.float32), bias.astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        return {"count": self.count, "sum": self.sum, "square": self.square}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.count, self.sum, self.square = (np.asarray(state[k]).copy() for k in ("count", "sum", "square"))


def fitted_scale(logits: np.ndarray, classes: np.ndarray) -> float:
    """The factor on the logits that gives the least cross-entropy, by golden-section search over its logarithm.

    Args:
        logits: (P, K) float. classes: (P,) integers.
    Returns:
        A factor in [1e-3, 10].
    """
    logits = logits - logits.max(1, keepdims=True)
    own = logits[np.arange(len(classes)), classes]

    def entropy(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float(np.mean(np.log(np.exp(scale * logits).sum(1)) - scale * own))

    low, high, ratio = np.log(1e-3), np.log(10.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if entropy(left) < entropy(right) else (left, high)
    return float(np.exp((low + high) / 2))
