from __future__ import annotations

import numpy as np
import pytest

from vitp_pipeline.classifier.training.lda import LdaStatistics
from vitp_pipeline.errors import UserError


def _images(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three images of points: (features (N, D), classes (N,)); class 3 never occurs."""
    means = rng.normal(size=(4, 5)) * 2
    images = []
    for present in ([0, 1], [1, 2], [0, 1, 2]):
        classes = rng.choice(present, size=40)
        images.append((means[classes] + rng.normal(size=(40, 5)), classes))
    return images


def test_images_added_together_are_those_added_one_by_one() -> None:
    """Also where an image has one class alone, and its points as many as another's of three."""
    rng = np.random.default_rng(3)
    features, classes = rng.normal(size=(4, 30, 5)), rng.integers(0, 3, (4, 30))
    classes[2] = 1
    together, single = LdaStatistics(4, 5), LdaStatistics(4, 5)
    together.update(features, classes)
    for image in range(4):
        single.update(features[image, None], classes[image, None])
    for name in ("count", "sum", "square"):
        np.testing.assert_allclose(getattr(together, name), getattr(single, name), rtol=1e-13, atol=1e-13)


def test_head_follows_the_definition() -> None:
    """Gaussian log-densities of a shared covariance, from weighted loops, give the same differences of scores."""
    images = _images(np.random.default_rng(0))
    statistics = LdaStatistics(4, 5)
    for features, classes in images:
        statistics.update(features[None], classes[None])
    weight, bias = statistics.head(shrinkage=0.5, class_prior=0.25)

    points = [
        (x, k, 1 / (classes == k).sum()) for features, classes in images for x, k in zip(features, classes, strict=True)
    ]
    total = sum(w for _, _, w in points)
    assert total == pytest.approx(2 + 2 + 3)  # every class of every image weighs one
    mean = sum(w * x for x, _, w in points) / total
    share = [sum(w for _, k, w in points if k == c) / total for c in range(3)]
    means = [sum(w * x for x, k, w in points if k == c) / (share[c] * total) for c in range(3)]
    within = sum(w * np.outer(x - means[k], x - means[k]) for x, k, w in points) / total
    variance = sum(w * (x - mean) ** 2 for x, _, w in points) / total
    inverse = np.linalg.inv(within + 0.5 * np.diag(variance))
    for x in np.random.default_rng(1).normal(size=(10, 5)):
        density = [-0.5 * (x - m) @ inverse @ (x - m) + 0.75 * np.log(s) for m, s in zip(means, share, strict=True)]
        scores = (weight @ x + bias)[:3]
        np.testing.assert_allclose(scores - scores[0], np.array(density) - density[0], atol=1e-4)
    assert bias[3] == bias[:3].min() and not weight[3].any()


def test_no_points() -> None:
    with pytest.raises(UserError, match="no point"):
        LdaStatistics(3, 2).head(1.0, 0.0)
