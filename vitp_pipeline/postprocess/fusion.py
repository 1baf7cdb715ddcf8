"""Fusion of the generator's and the classifier's scores of a mask; `formulas` has the ways to do it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.postprocess.formulas import log_objectness


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
    if np.float32(alpha) == 0.0:  # the classifier is not read, so that 0·(−∞) is never met
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
            "Generator and classifier must see the same queries and name the same classes",
        )
