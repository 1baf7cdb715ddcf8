"""The geometric ensemble of the generator's and the classifier's opinions about a mask (facts §3.3, paper Eq.
2).

With y the generator's class logits (void last) and c the classifier's logits:
in = softmax(y[:K]), out = softmax(c), v = softmax(y)[K], g_k = in_k^(1−α) · out_k^α, S = Σ g_k ≤ 1.

| formula | class k | void | source |
|---|---|---|---|
| `renormalised` | (1 − v)·g_k / S | v | official OneFormer code |
| `raw` | (1 − v)·g_k / ((1 − v)·S + v) | v / ((1 − v)·S + v) | official InternImage code |

The paper says no more than g and "∅ concatenated". Everything is computed from log-softmax: neither an ε nor
a product of underflown probabilities; the official ε of 1e-8 inside the log moves a probability by about as
much. Under both formulas Σ_k p_k ≤ 1 − v whatever the classifier says, which is what lets masks be dropped
before classification.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError, UsageError


def fuse(
    class_logits: Tensor, point_logits: Tensor, alpha: float, formula: str = "renormalised"
) -> tuple[Tensor, Tensor]:
    """Fused class probabilities of the queries of one image.

    Args:
        class_logits: (Q, K+1) floats, void last; −inf is allowed.
        point_logits: (Q, K) floats, −inf is allowed. Not read when α = 0.
        alpha: weight of the classifier in [0, 1]. 0 gives exactly softmax(class_logits) in both formulas; 1
            ignores how the generator divides 1 − v among the classes.
        formula: "renormalised" or "raw", see the module.
    Returns:
        p (Q, K) and p_void (Q,), float32, with Σ_k p_qk + p_void_q = 1. Where the two distributions share no
        class (S = 0, only with −inf logits) nothing can be named: p = 0 and p_void = 1.
    Raises:
        UsageError: α outside [0, 1], unknown formula.
        IncompatibleError: the shapes disagree.
    """
    _check(class_logits, point_logits, formula)
    y = class_logits.float()
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"α = {alpha} is not a weight", "Give a number from 0 (generator) to 1 (classifier)")
    own, other = float(np.float32(1.0 - alpha)), float(np.float32(alpha))
    if other == 0.0:  # where one weighs nothing it is not read, so that 0·(−∞) is never met
        plain = y.softmax(-1)
        return plain[:, :-1], plain[:, -1]
    log_g = _log_softmax(point_logits.float().to(y.device))
    if own > 0.0:
        log_g = own * _log_softmax(y[:, :-1]) + other * log_g
    if formula == "renormalised":
        dead = log_g.isneginf().all(-1)  # S = 0: the rest of the mass has no class to go to
        void = torch.where(dead, 0.0, y.log_softmax(-1)[:, -1]).exp()
        return (_log_softmax(log_g) + _log_object(y)[:, None]).exp(), void
    log_p = torch.cat([log_g + _log_object(y)[:, None], y.log_softmax(-1)[:, -1:]], -1)
    dead = log_p.isneginf().all(-1)
    probs = _log_softmax(log_p).exp()
    return probs[:, :-1], torch.where(dead, 1.0, probs[:, -1])


def named_probs(class_logits: Tensor, labels: np.ndarray | Tensor, keep_void: bool = True) -> Tensor:
    """Class probabilities of masks named by an oracle, for the upper bounds: (1 − v_q)·onehot(label_q).

    Args:
        class_logits: (Q, K+1) floats, void last.
        labels: (Q,) integers in 0..K−1, or IGNORE: such a query is dropped (a row of zeros).
        keep_void: weight by 1 − v_q; False gives plain one-hot rows.
    Returns:
        (Q, K) float32.
    Raises:
        IncompatibleError: shapes disagree, or a label is no class.
    """
    queries, classes = class_logits.shape[0], class_logits.shape[1] - 1
    labels = torch.as_tensor(labels).long().to(class_logits.device)
    if labels.shape != (queries,):
        raise IncompatibleError(f"{tuple(labels.shape)} labels for {queries} queries")
    if queries and not ((labels == IGNORE) | ((labels >= 0) & (labels < classes))).all():
        raise IncompatibleError(
            f"a label lies outside 0..{classes - 1}", "Generator and dataset must share their classes"
        )
    probs = class_logits.new_zeros((queries, classes), dtype=torch.float32)
    named = (labels != IGNORE).nonzero()[:, 0]
    weight = _log_object(class_logits.float()).exp() if keep_void else torch.ones_like(probs[:, 0])
    probs[named, labels[named]] = weight[named]
    return probs


def _check(class_logits: Tensor, point_logits: Tensor, formula: str) -> None:
    if formula not in FORMULAS:
        raise UsageError(f"unknown fusion formula {formula!r}", f"Choose one of {', '.join(FORMULAS)}")
    if (
        class_logits.ndim != 2
        or point_logits.ndim != 2
        or class_logits.shape != (point_logits.shape[0], point_logits.shape[1] + 1)
    ):
        raise IncompatibleError(
            f"class logits {tuple(class_logits.shape)} (Q, K+1) and point logits {tuple(point_logits.shape)} "
            "(Q, K) do not belong together",
            "Generator and classifier must see the same queries and name the same classes",
        )


def _log_object(y: Tensor) -> Tensor:
    """log(1 − v) without the subtraction that cancels when v is near 1."""
    return y[:, :-1].logsumexp(-1) - y.logsumexp(-1)


def _log_softmax(x: Tensor) -> Tensor:
    """log_softmax that leaves a row of −inf as it is instead of making it NaN."""
    return torch.where(x.isneginf(), x, x - x.logsumexp(-1, keepdim=True))
