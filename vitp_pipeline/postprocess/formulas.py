"""Formulas that fuse both class scores of masks, by name.

With y the generator's class logits (no object last) and c the classifier's logits:
in = softmax(y[:K]), out = softmax(c), v = softmax(y)[K], g_k = in_k^(1−α) · out_k^α, S = Σ g_k ≤ 1 (paper Eq. 2).

| formula | class k | no object | source |
|---|---|---|---|
| `renormalized` | (1 − v)·g_k / S | v | official OneFormer code |
| `raw` | (1 − v)·g_k / ((1 − v)·S + v) | v / ((1 − v)·S + v) | official InternImage code |

The paper says no more than g and "∅ concatenated". Everything is computed from log-softmax: neither an ε nor
a product of underflown probabilities; the official ε of 1e-8 inside the log moves a probability by about as
much.

Another formula is a function of the same form, `config.choices.Formula`. Only where Σ_k p_k ≤ 1 − v whatever the
classifier says, as here, does a mask that was not stored (`drop_below`) change no map by more than it is said to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitp_pipeline.config.choices import FORMULAS

if TYPE_CHECKING:
    from torch import Tensor


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
    """(Q, K) log g. Where one side weighs nothing it is not read, so that 0·(−∞) is never met."""
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
