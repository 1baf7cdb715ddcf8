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
before classification (design §5).

Beyond the paper, α may differ between masks (`alpha_by_score`), and between classes under `renormalised`: there the
bound holds for any g, while a `raw` S of several α can exceed 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError, UsageError

FORMULAS = ("renormalised", "raw")


def fuse(
    class_logits: Tensor, point_logits: Tensor, alpha: float | Tensor, formula: str = "renormalised"
) -> tuple[Tensor, Tensor]:
    """Fused class probabilities of the queries of one image.

    Args:
        class_logits: (Q, K+1) floats, void last; −inf is allowed.
        point_logits: (Q, K) floats, −inf is allowed. Not read when α = 0.
        alpha: weight of the classifier in [0, 1]. 0 gives exactly softmax(class_logits) in both formulas; 1
            ignores how the generator divides 1 − v among the classes. A tensor, best float64, is of shape (Q, 1) for
            an α per mask, or (1, K) or (Q, K) for one per class.
        formula: "renormalised" or "raw", see the module.
    Returns:
        p (Q, K) and p_void (Q,), float32, with Σ_k p_qk + p_void_q = 1. Where the two distributions share no
        class (S = 0, only with −inf logits) nothing can be named: p = 0 and p_void = 1.
    Raises:
        UsageError: α outside [0, 1], unknown formula, an α per class with "raw".
        IncompatibleError: the shapes disagree.
    """
    _check(class_logits, point_logits, formula)
    y = class_logits.float()
    weight = _weights(alpha, y[:, :-1], formula)
    return _fuse(y, _log_softmax(y[:, :-1]), _log_softmax(point_logits.float().to(y.device)), weight, formula)


def alpha_by_score(class_logits: Tensor, low: float, high: float) -> Tensor:
    """An α for every mask, by how surely the generator says that it is something: low + (high − low)·(1 − v).

    Args:
        class_logits: (Q, K+1) floats, void last.
        low, high: α of a mask with 1 − v = 0 and with 1 − v = 1, in [0, 1].
    Returns:
        (Q, 1) float64 in [0, 1], for `fuse`.
    """
    present = _log_object(class_logits.double()).exp()[:, None]
    return (low + (high - low) * present).clamp(0.0, 1.0)


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


def _weights(alpha: float | Tensor, classes: Tensor, formula: str) -> Tensor:
    """α as a float64 tensor that broadcasts against (Q, K)."""
    shaped = isinstance(alpha, Tensor) and alpha.ndim > 0
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=classes.device)
    if not ((alpha >= 0.0) & (alpha <= 1.0)).all():
        wrong = alpha[~((alpha >= 0.0) & (alpha <= 1.0))][0]
        raise UsageError(f"α = {float(wrong)} is not a weight", "Give a number from 0 (generator) to 1 (classifier)")
    if not shaped:
        return alpha.reshape(1, 1)
    queries, count = classes.shape
    if alpha.ndim != 2 or alpha.shape[0] not in (1, queries) or alpha.shape[1] not in (1, count):
        raise IncompatibleError(f"α of shape {tuple(alpha.shape)} for {queries} masks and {count} classes")
    if alpha.shape[1] > 1 and formula != "renormalised":
        raise UsageError("an α per class needs the formula renormalised: only there dropped masks stay without effect")
    return alpha


def _fuse(y: Tensor, log_in: Tensor, log_out: Tensor, alpha: Tensor, formula: str) -> tuple[Tensor, Tensor]:
    own, other = (1.0 - alpha).float(), alpha.float()
    # where one weighs nothing it is not read, so that 0·(−∞) is never met
    log_g = torch.where(other == 0.0, log_in, torch.where(own == 0.0, log_out, own * log_in + other * log_out))
    if formula == "renormalised":
        dead = log_g.isneginf().all(-1)  # S = 0: the rest of the mass has no class to go to
        void = torch.where(dead, 0.0, y.log_softmax(-1)[:, -1]).exp()
        probs = (_log_softmax(log_g) + _log_object(y)[:, None]).exp()
    else:
        log_p = torch.cat([log_g + _log_object(y)[:, None], y.log_softmax(-1)[:, -1:]], -1)
        dead = log_p.isneginf().all(-1)
        probs = _log_softmax(log_p).exp()
        probs, void = probs[:, :-1], torch.where(dead, 1.0, probs[:, -1])
    plain, generator = y.softmax(-1), (other == 0.0).all(-1)  # masks that the classifier has no say in
    return torch.where(generator[:, None], plain[:, :-1], probs), torch.where(generator, plain[:, -1], void)


def _log_object(y: Tensor) -> Tensor:
    """log(1 − v) without the subtraction that cancels when v is near 1."""
    return y[:, :-1].logsumexp(-1) - y.logsumexp(-1)


def _log_softmax(x: Tensor) -> Tensor:
    """log_softmax that leaves a row of −inf as it is instead of making it NaN."""
    return torch.where(x.isneginf(), x, x - x.logsumexp(-1, keepdim=True))
