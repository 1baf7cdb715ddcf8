"""Members of every family as a package of somebody else's adds them: only what docs/develop.md names is imported."""

from __future__ import annotations

from vitp_pipeline.config.choices import FORMULAS


@FORMULAS.register("arithmetic")
def arithmetic(generator, classifier, alpha):
    """(1 − v) · ((1 − α) in + α out), and v."""
    probs = generator.softmax(-1)
    objectness = probs[:, :-1].sum(1, keepdim=True)
    mixed = (1 - alpha) * generator[:, :-1].softmax(-1) + alpha * classifier.softmax(-1)
    return objectness * mixed, probs[:, -1]
