"""Fuse the generator's and the classifier's class scores of masks, by a registry of formulas.

With y the generator's class logits (no object last) and c the classifier's logits:
in = softmax(y[:K]), out = softmax(c), v = softmax(y)[K], g_k = in_k^(1−α) · out_k^α, S = Σ g_k ≤ 1 (paper Eq. 2).

| formula | class k | no object | source |
|---|---|---|---|
| `renormalized` | (1 − v)·g_k / S | v | official OneFormer code |
| `raw` | (1 − v)·g_k / ((1 − v)·S + v) | v / ((1 − v)·S + v) | official InternImage code |

The paper specifies only g and "∅ concatenated". Everything is computed from log-softmax: neither an ε nor
a product of underflown probabilities; the official ε of 1e-8 inside the log moves a probability by about as
much.

Another formula is a function of the same form, `config.choices.Formula`. Only where Σ_k p_k ≤ 1 − v whatever the
classifier says, as here, does a mask that was not stored (`drop_below`) change a map by no more than documented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


def fuse(
    class_logits: Tensor, point_logits: Tensor, alpha: float, formula: str = "renormalized"
) -> tuple[Tensor, Tensor]:
    """Fused class probabilities of the queries of one image.

    Args:
        class_logits: (Q, K+1) floats, no object last; −inf is allowed.
        point_logits: (Q, K) floats, −inf is allowed. Not read when α = 0.
        alpha: weight of the classifier in [0, 1]. 0 gives exactly softmax(class_logits) by every formula; 1
            ignores how the generator divides 1 − v among the classes.
        formula: one of `FORMULAS`.
    Returns:
        p (Q, K) and p_none (Q,), float32, with Σ_k p_qk + p_none_q = 1.
    Raises:
        UsageError: α outside [0, 1], unknown formula.
        IncompatibleError: the shapes disagree.
    """
    fused = FORMULAS[formula]
    _check(class_logits, point_logits)
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"α = {alpha} is not a weight", "Give a number from 0 (generator) to 1 (classifier)")
    y = class_logits.float()
    if np.float32(alpha) == 0.0:  # do not read the classifier: 0·(−∞) is NaN
        plain = y.softmax(-1)
        return plain[:, :-1], plain[:, -1]
    return fused(y, point_logits.float().to(y.device), alpha)


def probs_of_labels(class_logits: Tensor, labels: np.ndarray | Tensor, keep_no_object: bool = True) -> Tensor:
    """Class probabilities of masks classified by an oracle, for the upper bounds: (1 − v_q)·onehot(label_q).

    Args:
        class_logits: (Q, K+1) floats, no object last.
        labels: (Q,) integers in 0..K−1, or IGNORE: such a query is dropped (a row of zeros).
        keep_no_object: weight by 1 − v_q; False gives plain one-hot rows.
    Returns:
        (Q, K) float32.
    Raises:
        IncompatibleError: shapes disagree, or a label is no class.
    """
    import torch

    queries, classes = class_logits.shape[0], class_logits.shape[1] - 1
    labels = torch.as_tensor(labels).long().to(class_logits.device)
    if labels.shape != (queries,):
        raise IncompatibleError(f"{tuple(labels.shape)} labels for {queries} queries")
    if queries and not ((labels == IGNORE) | ((labels >= 0) & (labels < classes))).all():
        raise IncompatibleError(
            f"a label lies outside 0..{classes - 1}", "Generator and dataset must share their classes"
        )
    probs = class_logits.new_zeros((queries, classes), dtype=torch.float32)
    labeled = (labels != IGNORE).nonzero()[:, 0]
    weight = log_objectness(class_logits.float()).exp() if keep_no_object else torch.ones_like(probs[:, 0])
    probs[labeled, labels[labeled]] = weight[labeled]
    return probs


def _check(class_logits: Tensor, point_logits: Tensor) -> None:
    if (
        class_logits.ndim != 2
        or point_logits.ndim != 2
        or class_logits.shape != (point_logits.shape[0], point_logits.shape[1] + 1)
    ):
        raise IncompatibleError(
            f"class logits {tuple(class_logits.shape)} (Q, K+1) and point logits {tuple(point_logits.shape)} "
            "(Q, K) do not belong together",
            "Generator and classifier must use the same queries and the same classes",
        )


@FORMULAS.register("renormalized")
def renormalized(generator: Tensor, classifier: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Divide 1 − v among the classes as g does. Where S = 0, with −inf logits, no class is possible: v = 1."""
    log_g = geometric(generator, classifier, alpha)
    dead = log_g.isneginf().all(-1)
    no_object = generator.log_softmax(-1)[:, -1].masked_fill(dead, 0.0).exp()
    return (log_softmax(log_g) + log_objectness(generator)[:, None]).exp(), no_object


@FORMULAS.register("raw")
def raw(generator: Tensor, classifier: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Put (1 − v)·g beside v, and divide by their sum. Where S = 0, v = 1."""
    import torch

    log_g = geometric(generator, classifier, alpha)
    log_p = torch.cat([log_g + log_objectness(generator)[:, None], generator.log_softmax(-1)[:, -1:]], -1)
    probs = log_softmax(log_p).exp()
    return probs[:, :-1], probs[:, -1].masked_fill(log_p.isneginf().all(-1), 1.0)


def geometric(generator: Tensor, classifier: Tensor, alpha: float) -> Tensor:
    """(Q, K) log g. A side of weight 0 is not read: 0·(−∞) is NaN."""
    import torch

    # both weights as float32 has them
    own, other = torch.tensor([1.0 - alpha, alpha]).tolist()
    log_g = log_softmax(classifier)
    return own * log_softmax(generator[:, :-1]) + other * log_g if own > 0.0 else log_g


def log_objectness(generator: Tensor) -> Tensor:
    """(Q,) log(1 − v) without the subtraction that cancels when v is near 1."""
    return generator[:, :-1].logsumexp(-1) - generator.logsumexp(-1)


def log_softmax(x: Tensor) -> Tensor:
    """log_softmax that leaves a row of −inf as it is instead of making it NaN."""
    return x.where(x.isneginf(), x - x.logsumexp(-1, keepdim=True))
