"""Opaque masks: order, maps and panoptic owners against loops over pixels, and what must hold of nested masks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.config.choices import PROTOCOLS
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.overlaps.maps import opaque_label_maps
from vitp_pipeline.postprocess.overlaps.stack import bottom_to_top, outline_sheets
from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map
from vitp_pipeline.postprocess.semantic import semantic_label_maps
from vitp_pipeline.postprocess.upsample import iter_mask_logits, iter_mask_probabilities

RULES = ("smallest-on-top", "highest-score")
VIEWS = {
    "same": View((20, 26), (20, 26), (20, 26), (20, 26)),
    "padded": View((20, 26), (20, 26), (32, 32), (8, 8)),
    "resized": View((41, 50), (20, 26), (32, 32), (8, 8)),
    "odd": View((41, 19), (30, 30), (30, 31), (7, 11)),
}
K = 4


def example(view: View, seed: int, queries: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks that overlap and leave holes, and class probabilities of three variants; some masks are no object."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, queries, 4, 4, generator=generator) * 5 - 3
    masks = torch.nn.functional.interpolate(coarse, view.mask, mode="bilinear")[0]
    logits = torch.randn(3, queries, K + 1, generator=generator) * 2
    logits[..., -1] -= 1
    return masks, logits.softmax(-1)[..., :-1]


def is_above(rule: str, one: tuple[int, float, int], other: tuple[int, float, int]) -> bool:
    """(area, score, query) of two masks."""
    if rule == "smallest-on-top":
        keys = [(area, -score, query) for area, score, query in (one, other)]
    else:
        keys = [(-score, area, query) for area, score, query in (one, other)]
    return keys[0] < keys[1]


def loop(masks, probs, view, protocol, rule):
    """(H, W) labels of one variant, pixel by pixel."""
    covers = np.stack([plane.numpy() > 0 for plane in iter_mask_logits(masks, view)])
    summed = semantic_label_maps(masks, probs[None], view, protocol)[0]
    labels = np.empty(view.original, int)
    for row in range(view.original[0]):
        for col in range(view.original[1]):
            best = None
            for q in range(len(masks)):
                if not covers[q, row, col] or float(probs[q].sum()) <= 0.5:
                    continue
                mask = int(covers[q].sum()), float(probs[q].max()), q
                if best is None or is_above(rule, mask, best):
                    best = mask
            labels[row, col] = summed[row, col] if best is None else int(probs[best[2]].argmax())
    return labels


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VIEWS)
def test_labels_against_a_loop(name: str, protocol: str, rule: str) -> None:
    view = VIEWS[name]
    for seed in range(3):
        masks, probs = example(view, seed)
        found = opaque_label_maps(masks, probs, view, protocol, rule)
        assert found.dtype == np.int16 and found.shape == (3, *view.original)
        for variant in range(3):
            assert (found[variant] == loop(masks, probs[variant], view, protocol, rule)).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8), st.sampled_from(RULES))
def test_the_order_is_strict_and_has_every_mask_once(masks: list[tuple[int, int]], rule: str) -> None:
    areas, scores = (np.array([mask[i] for mask in masks], float) for i in (0, 1))
    order = bottom_to_top(rule, areas, scores).tolist()
    assert sorted(order) == list(range(len(masks)))
    for lower, upper in pairwise(order):
        assert is_above(rule, (areas[upper], scores[upper], upper), (areas[lower], scores[lower], lower))


def boxes(*corners: tuple[int, int, int, int], size: tuple[int, int] = (24, 24)) -> torch.Tensor:
    """Binary masks of boxes (top, left, bottom, right)."""
    masks = torch.full((len(corners), *size), -10.0)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = 10.0
    return masks


SQUARE = View((24, 24), (24, 24), (24, 24), (24, 24))
WHOLE, PART, FAR = (2, 2, 22, 12), (6, 4, 10, 8), (2, 14, 22, 20)


def one_hot(*scores: tuple[int, float]) -> torch.Tensor:
    """(1, Q, K) of a class and its probability each; the rest is no object."""
    probs = torch.zeros(1, len(scores), K)
    for row, (label, score) in zip(probs[0], scores, strict=True):
        row[label] = score
    return probs


def test_a_part_lies_on_its_whole() -> None:
    """Under the sum the more certain whole hides it."""
    masks, probs = boxes(WHOLE, PART), one_hot((0, 0.95), (1, 0.7))
    top = opaque_label_maps(masks, probs, SQUARE, "d2", "smallest-on-top")[0]
    assert (top[6:10, 4:8] == 1).all() and (top[2:6, 2:12] == 0).all() and (top[10:22, 2:12] == 0).all()
    for hidden in (
        opaque_label_maps(masks, probs, SQUARE, "d2", "highest-score"),
        semantic_label_maps(masks, probs, SQUARE, "d2"),
    ):
        assert (hidden[0][2:22, 2:12] == 0).all()
    flipped = one_hot((0, 0.7), (1, 0.95))
    assert (opaque_label_maps(masks, flipped, SQUARE, "d2", "highest-score")[0][6:10, 4:8] == 1).all()


def test_the_order_of_the_masks_does_not_matter() -> None:
    masks, probs = example(VIEWS["padded"], 5)
    turned = torch.arange(len(masks)).flip(0)
    for rule in RULES:
        both = [opaque_label_maps(masks[o], probs[:, o], VIEWS["padded"], "d2", rule) for o in (turned, turned.flip(0))]
        assert (both[0] == both[1]).all()


def test_all_rules_agree_on_disjoint_masks() -> None:
    masks, probs = boxes(WHOLE, FAR), one_hot((2, 0.9), (3, 0.8))
    summed = semantic_label_maps(masks, probs, SQUARE, "d2")
    no_object = 1 - probs[0].sum(1)
    things = np.ones(K, bool)
    ids, segments = panoptic_map(masks, probs[0], no_object, SQUARE, "d2", PanopticRule(object_threshold=0.5), things)
    assert len(segments) == 2
    for rule in RULES:
        assert (opaque_label_maps(masks, probs, SQUARE, "d2", rule) == summed).all()
        found = panoptic_map(
            masks, probs[0], no_object, SQUARE, "d2", PanopticRule(object_threshold=0.5), things, overlap=rule
        )
        assert (found[0] == ids).all() and found[1] == segments


def test_a_mask_that_is_hardly_an_object_covers_nothing() -> None:
    masks = boxes(WHOLE, PART)
    labels = opaque_label_maps(masks, one_hot((0, 0.9), (1, 0.5)), SQUARE, "d2", "smallest-on-top")
    assert (labels[0][2:22, 2:12] == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_without_masks_or_classes_nothing_is_labeled(rule: str) -> None:
    masks = boxes(WHOLE)
    assert (opaque_label_maps(masks, torch.zeros(2, 1, K), SQUARE, "d2", rule) == IGNORE).all()
    assert (opaque_label_maps(masks[:0], torch.zeros(1, 0, K), SQUARE, "d2", rule) == IGNORE).all()
    mixed = torch.cat([torch.zeros(1, 1, K), one_hot((1, 0.9))])
    labels = opaque_label_maps(masks, mixed, SQUARE, "d2", rule)
    assert (labels[0] == IGNORE).all() and (labels[1] == 1).all()  # where no mask is, the sum has it


def test_sheets_have_the_pixels_of_the_planes() -> None:
    for view in VIEWS.values():
        masks, _ = example(view, 3)
        for sheet, plane in zip(outline_sheets(masks, view), iter_mask_logits(masks, view), strict=True):
            found = np.zeros(view.original, bool)
            found[sheet.box] = sheet.inside
            assert (found == (plane.numpy() > 0)).all() and sheet.area == found.sum()


def stacked(masks, probs, no_object, view, protocol, rule, order):
    """Segments as {(class, frozen set of pixels)}, pixel by pixel, where all classes are things."""
    scores, labels = probs.max(1)
    taking = [q for q in range(len(masks)) if scores[q] > rule.object_threshold and scores[q] >= no_object[q]]
    planes = {q: p.numpy() for q, p in enumerate(iter_mask_probabilities(masks, view, protocol)) if q in taking}
    claims = {q: planes[q] >= 0.5 for q in taking}
    owned, both = ({q: set() for q in taking} for _ in range(2))
    for row in range(view.original[0]):
        for col in range(view.original[1]):
            claiming = [q for q in taking if claims[q][row, col]]
            best = None
            for q in claiming:
                mask = int(claims[q].sum()), float(scores[q]), q
                if best is None or is_above(order, mask, best):
                    best = mask
            if best is None:
                weights = [np.float32(scores[q]) * planes[q][row, col] for q in taking]
                owned[taking[int(np.argmax(weights))]].add((row, col))
            else:
                owned[best[2]].add((row, col))
                both[best[2]].add((row, col))
    kept = both if rule.keeps_only_claimed else owned
    return {
        (int(labels[q]), frozenset(kept[q]))
        for q in taking
        if kept[q] and claims[q].sum() and len(owned[q]) / claims[q].sum() >= rule.overlap_threshold
    }


@pytest.mark.parametrize("order", RULES)
@pytest.mark.parametrize("panoptic", ["d2", "mmdet"])
@pytest.mark.parametrize("name, protocol", [("padded", "d2"), ("resized", "mmseg1"), ("odd", "mmseg0")])
def test_panoptic_owners_against_a_loop(name: str, protocol: str, panoptic: str, order: str) -> None:
    view = VIEWS[name]
    rule = PanopticRule(panoptic, object_threshold=0.3, overlap_threshold=0.4)
    some = 0
    for seed in range(4):
        masks, probs = example(view, seed)
        probs, no_object = probs[0], 1 - probs[0].sum(1)
        ids, segments = panoptic_map(masks, probs, no_object, view, protocol, rule, np.ones(K, bool), overlap=order)
        found = {
            (s.category, frozenset(zip(*(axis.tolist() for axis in np.nonzero(ids == s.id)), strict=True)))
            for s in segments
        }
        assert found == stacked(masks, probs, no_object, view, protocol, rule, order)
        some += len(found)
    assert some > 4


def test_bad_arguments() -> None:
    masks, probs = boxes(WHOLE), one_hot((0, 0.9))
    with pytest.raises(UsageError, match="no order"):
        opaque_label_maps(masks, probs, SQUARE, "d2", "sum")
    with pytest.raises(IncompatibleError):
        opaque_label_maps(masks, probs[:, :0], SQUARE, "d2", "highest-score")
    with pytest.raises(UsageError):
        opaque_label_maps(masks, probs, SQUARE, "d1", "highest-score")
    with pytest.raises(IncompatibleError, match="flipped"):
        opaque_label_maps(masks, probs, replace(SQUARE, flip=True), "d2", "highest-score")
