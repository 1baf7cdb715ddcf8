"""α per class: the file that gives it, and its fit to named masks.

With in and out the log-probabilities of both scores, the fused ones of a mask are in_k + α_k·(out_k − in_k), up to a
constant (`fusion`, renormalised): linear in α. So the mean of −log p(label) is convex in α, for an α per class as for
one that depends on the mask score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitp_pipeline.errors import InputError, UsageError


def parse_alpha(text: str) -> float:
    """A single number on the command line. Raises UsageError."""
    try:
        return float(text)
    except ValueError:
        mend = "The decimal sign is a point, as in 0.4" if "," in text else "Like 0.4"
        raise UsageError(f"--alpha {text!r} is not a number", mend) from None


def check_decimal_sign(text: str) -> None:
    """Raises UsageError where a comma is likely meant for a point: `0,4` and `0:1:0,1`, but not the list `0,0.4,1`."""
    if "." in text or not re.search(r"\b0,\d", text):
        return
    if ":" in text or any(float(word) > 1 or len(word) > 1 for word in re.findall(r"\d+", text)):
        raise UsageError(
            f"--alpha {text}: a comma separates values, the decimal sign is a point",
            f"Is {text.replace(',', '.')} meant?" if text.count(",") == 1 else "Like 0.4, or 0,0.4,1 for three",
        )


def read_alphas(path: Path, classes: Sequence[str], alpha: float) -> dict[str, float]:
    """α of every class, in the order of `classes`, from a JSON object of class name → α; `alpha` for those it lacks.

    Raises:
        InputError: not such a file, a name that is no class, or a value outside [0, 1].
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not an object of class name → α", 'Like {"sky": 0.7, "road": 0.2}')
    for name, value in values.items():
        if name not in classes:
            raise InputError(f"{path}: {name!r} is not a class of the dataset", "Correct or remove it")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            raise InputError(f"{path}: α of {name!r} is {value!r}, not a number from 0 to 1")
    return {name: float(values.get(name, alpha)) for name in classes}


class NamedMasks:
    """Masks with both scores and a true name, to fit α to. Log-probabilities are cut at −50.

    Args:
        log_in, log_out: (N, K) log-probabilities of the generator (void left out) and of the classifier.
        present: (N,) 1 − v.
        labels: (N,) integers in [0, K).
    """

    def __init__(self, log_in: np.ndarray, log_out: np.ndarray, present: np.ndarray, labels: np.ndarray) -> None:
        self.log_in, log_out = np.maximum(log_in, -50.0).astype(np.float64), np.maximum(log_out, -50.0)
        self.step = log_out - self.log_in
        self.present, self.labels = np.asarray(present, np.float64), np.asarray(labels, np.int64)

    def __getitem__(self, chosen: np.ndarray) -> NamedMasks:
        """Some of the masks."""
        own = self.log_in[chosen]
        return NamedMasks(own, own + self.step[chosen], self.present[chosen], self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)

    def probs(self, alpha: float | np.ndarray) -> np.ndarray:
        """(N, K) fused class probabilities, Σ = 1; α broadcasts against (N, K)."""
        score = self.log_in + alpha * self.step
        score = np.exp(score - score.max(1, keepdims=True))
        return np.asarray(score / score.sum(1, keepdims=True))

    def loss(self, alpha: float | np.ndarray) -> float:
        """Mean of −log p(label)."""
        return float(-np.log(np.maximum(self.probs(alpha)[np.arange(len(self)), self.labels], 1e-300)).mean())

    def right(self, alpha: float | np.ndarray) -> float:
        """Share named right."""
        return float((self.probs(alpha).argmax(1) == self.labels).mean())

    def slope(self, alpha: float | np.ndarray) -> np.ndarray:
        """(N, K): the derivative of N·loss by the α of every mask and class."""
        miss = self.probs(alpha)
        miss[np.arange(len(self)), self.labels] -= 1.0
        return np.asarray(miss * self.step)


def fit_class_alphas(masks: NamedMasks, alpha: float, weight: float) -> np.ndarray:
    """The α per class in [0, 1] that minimises N·loss + weight/2 · Σ_k (α_k − alpha)².

    Args:
        weight: > 0; how many nats of evidence it takes to move a class's α far from `alpha`, roughly twice.
    Returns:
        (K,) float64; exactly `alpha` where no mask says anything about the class.
    """

    def objective(alphas: np.ndarray) -> tuple[float, np.ndarray]:
        away = alphas - alpha
        slope = masks.slope(alphas).sum(0) + weight * away
        return len(masks) * masks.loss(alphas) + weight / 2 * float(away @ away), slope

    return _minimum(objective, np.full(masks.step.shape[1], alpha))


def fit_score_alphas(masks: NamedMasks, alpha: float, weight: float) -> tuple[float, float]:
    """(low, high) of `fusion.alpha_by_score` that minimise N·loss + weight/2 · ((low − alpha)² + (high − alpha)²)."""
    share = np.stack([1.0 - masks.present, masks.present])

    def objective(ends: np.ndarray) -> tuple[float, np.ndarray]:
        away, alphas = ends - alpha, (ends @ share)[:, None]
        slope = share @ masks.slope(alphas).sum(1) + weight * away
        return len(masks) * masks.loss(alphas) + weight / 2 * float(away @ away), slope

    low, high = _minimum(objective, np.full(2, alpha))
    return float(low), float(high)


def _minimum(objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize

    bounds = [(0.0, 1.0)] * len(start)
    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def write_alphas(path: Path, values: Mapping[str, float]) -> None:
    """Writes what `read_alphas` reads, with four decimals."""
    from vitp_pipeline.artifacts.files import write_json

    write_json(path, {name: round(float(value), 4) for name, value in values.items()})
