from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from vitp_pipeline.classifier.training.calibration import LIMITS, fit_temperature


def points(seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth, times `scale`: the temperature that mends them is `scale`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (4000, 6))
    probs = torch.from_numpy(logits).softmax(1).numpy()
    return scale * logits, np.array([rng.choice(6, p=p) for p in probs])


@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0])
def test_it_finds_the_scale_and_scipys_minimum(scale: float) -> None:
    logits, labels = points(scale=scale)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(scale, rel=0.05)

    def loss(log: float) -> float:
        return float(F.cross_entropy(torch.from_numpy(logits) / np.exp(log), torch.from_numpy(labels)))

    best = minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded", options={"xatol": 1e-8})
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert loss(np.log(found)) <= best.fun + 1e-12


def test_bounds_and_extremes() -> None:
    logits, labels = points()
    assert fit_temperature(F.one_hot(torch.from_numpy(labels)).numpy(), labels) == pytest.approx(LIMITS[0])
    assert fit_temperature(-logits, logits.argmax(1)) == pytest.approx(LIMITS[1])  # worse than chance
    assert fit_temperature(logits + 1e4, labels) == pytest.approx(fit_temperature(logits, labels))
    assert fit_temperature(logits * 1e4, labels) == pytest.approx(LIMITS[1])
