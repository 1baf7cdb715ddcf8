"""Semantic labels and panoptic owners where masks are opaque (`overlaps.stack`)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vitp_pipeline.config.choices import Overlap
from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.overlaps.stack import bottom_to_top, claimed_sheets, outline_sheets, topmost
from vitp_pipeline.postprocess.semantic import check_whole, has_class, semantic_label_maps


def opaque_label_maps(
    mask_logits: Tensor, probs: Tensor, view: View, protocol: str, rule: Overlap, pixels: np.ndarray | None = None
) -> np.ndarray:
    """Label every pixel with the best class of the topmost mask that covers it.

    A mask q takes part where Σ_k p_qk > 1/2: it is more likely an object than not. It covers {logit > 0} on the
    original image; its score is max_k p_qk, and its class that k, ties to the lowest. A pixel that no such mask covers
    gets its label from the sum over all masks, as under `overlap = "sum"`.

    Args:
        mask_logits, probs, view, protocol: as `semantic.semantic_label_maps`.
        rule: "smallest-on-top" or "highest-score".
        pixels: (H0·W0,) int64, of how many pixels each one's area is (`artifacts.pixel_groups`); None = of itself.
    Returns:
        (A, H0, W0) int16 class indices; IGNORE all over where there is no mask, or none has a class.
    Raises:
        UsageError: unknown protocol, or a rule without an order.
        IncompatibleError: shapes disagree, or the view is not whole.
    """
    check_whole(mask_logits, probs, view, protocol)
    some = has_class(probs)
    labels = np.full((len(probs), *view.original), IGNORE, np.int16)
    if not some.any():
        return labels
    sheets = outline_sheets(mask_logits, view, pixels)
    areas = np.array([sheet.area for sheet in sheets])
    classes, scores = probs.argmax(2).cpu().numpy(), probs.amax(2).cpu().numpy()
    takes_part = (probs.sum(2) > 0.5).cpu().numpy()
    uncovered = []
    for variant in np.flatnonzero(some):
        order = bottom_to_top(rule, areas, scores[variant])
        top = topmost(sheets, order[takes_part[variant, order]], view.original)
        labels[variant] = np.append(classes[variant], IGNORE)[top]
        if (top < 0).any():
            uncovered.append(int(variant))
    if uncovered:
        summed = semantic_label_maps(mask_logits, probs[uncovered], view, protocol)
        labels[uncovered] = np.where(labels[uncovered] == IGNORE, summed, labels[uncovered])
    return labels


def opaque_owners(
    mask_logits: Tensor,
    scores: Tensor,
    view: View,
    protocol: str,
    threshold: float,
    rule: Overlap,
    owner: np.ndarray,
    pixels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give every pixel to the topmost mask that claims it.

    Args:
        mask_logits: (Q, h, w) floats in the padded frame of the masks that take part.
        scores: (Q,) by which they are ordered.
        view, protocol: as `panoptic.panoptic_map`.
        threshold: a mask claims the pixels of at least this probability.
        rule: as `opaque_label_maps`.
        owner: (H0, W0) int32, who has the pixels that no mask claims.
        pixels: as `opaque_label_maps`.
    Returns:
        owner (H0, W0) int32, whether it claims the pixel (H0, W0) bool, and pixels that each mask claims (Q,) int64.
    Raises:
        UsageError, IncompatibleError: as `opaque_label_maps`.
    """
    sheets = claimed_sheets(mask_logits, view, protocol, threshold, pixels)
    areas = np.array([sheet.area for sheet in sheets], np.int64)
    top = topmost(sheets, bottom_to_top(rule, areas, scores.cpu().numpy()), view.original)
    return np.where(top < 0, owner, top), top >= 0, areas
