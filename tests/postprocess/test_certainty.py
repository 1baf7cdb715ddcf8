from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.artifacts.mask_codec import PRESETS, MaskCodec, MaskLoss, store_masks
from vitp_pipeline.config.choices import PROTOCOLS
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.certainty import ROUNDING, certain_map, score_bounds
from vitp_pipeline.postprocess.fusion import fuse
from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map
from vitp_pipeline.postprocess.semantic import semantic_scores
from vitp_pipeline.postprocess.upsample import iter_mask_logits, source_reach

VIEWS = {
    "same size": View((32, 40), (32, 40), (32, 48), (8, 12)),
    "larger image": View((50, 61), (32, 40), (32, 48), (8, 12)),
    "smaller image": View((11, 17), (30, 41), (32, 48), (8, 12)),
    "odd": View((23, 31), (33, 40), (37, 48), (9, 12)),
}
CODECS = {
    "bounded": PRESETS["bounded"],
    "compact": PRESETS["compact"],
    "coarse": {"drop_below": 0.5, "floor": -1.0, "step": 1.0, "mask_dtype": "float32"},
    "dropped": {"drop_below": 0.3, "mask_dtype": "float32"},
    "floored": {"drop_below": 0.0, "floor": -2.0, "mask_dtype": "float32"},
    "graded": {"drop_below": 0.0, "step": 1 / 8, "graded": True, "mask_dtype": "float32"},
    "graded and floored": {"drop_below": 0.0, "floor": -3.0, "step": 0.5, "graded": True, "mask_dtype": "float32"},
    "rounded": {"drop_below": 0.0, "step": 0.5, "mask_dtype": "float32"},
    "float16": {"drop_below": 0.01},
}


def drawn(seed: int, kind: str, grid: tuple[int, int], queries: int = 7, classes: int = 4) -> SimpleNamespace:
    """Logits of an image. `real`: smooth blobs; `edges`: jumps from one end to the other between neighbors;
    `ties`: just below a floor, and at half steps; `alike`: classes that are nearly equal everywhere.
    """
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(queries, *grid, generator=random)
    masks = {
        "real": 4 * torch.nn.functional.avg_pool2d(noise[None], 3, 1, 1)[0] * 3 - 3,
        "edges": torch.where(noise > 0, 60.0, -60.0) * torch.rand(queries, *grid, generator=random).round(decimals=1),
        "ties": -8 + noise.sign() * 1e-4 + (noise * 4).round() / 4 + 1 / 128,
        "alike": noise[:1].expand(queries, *grid) + 1e-3 * noise,
    }[kind]
    logits = 2 * torch.randn(queries, classes + 1, generator=random)
    logits[:, -1] += torch.where(torch.rand(queries, generator=random) < 0.5, 6.0, -2.0)
    if kind == "alike":
        logits[:, :-1] = 1e-3 * logits[:, :-1]
    points = 2 * torch.randn(queries, classes, generator=random)
    objectness = 1 - logits.double().softmax(1)[:, -1].numpy()
    return SimpleNamespace(masks=masks.contiguous(), logits=logits, points=points, objectness=objectness)


CASES = (
    st.integers(0, 10**6),
    st.sampled_from(["real", "edges", "ties", "alike"]),
    st.sampled_from(sorted(VIEWS)),
    st.sampled_from(PROTOCOLS),
    st.sampled_from(sorted(CODECS)),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from(["renormalized", "raw"]),
)


@pytest.mark.slow
@settings(max_examples=350, deadline=None, derandomize=True)
@given(*CASES)
def test_scores_stay_within_their_bounds_and_certain_labels_do_not_change(
    seed: int, kind: str, view_name: str, protocol: str, codec_name: str, alpha: float, formula: str
) -> None:
    view, codec = VIEWS[view_name], MaskCodec(**CODECS[codec_name])
    image = drawn(seed, kind, view.mask)
    probs = fuse(image.logits, image.points, alpha, formula)[0]
    stored = store_masks(image.masks, image.objectness, codec, source_reach(view))
    masks, kept = torch.from_numpy(stored.masks).float(), torch.from_numpy(stored.kept).long()

    certain = certain_map(masks, probs, kept, view, protocol, stored.loss)
    assert certain.shape == view.original
    if not len(kept):  # nothing is known
        assert not certain.any()
        return
    true = semantic_scores(image.masks, probs[None], view, protocol)[0]
    found = semantic_scores(masks, probs[None, kept], view, protocol)[0]
    inside = probs[kept].sum(0)
    rows = view.original[0]
    scores, low, high = (
        each.T.reshape(found.shape)
        for each in score_bounds(masks, probs[kept].float(), view, protocol, stored.loss, 0, rows)
    )
    (alike, _, _) = score_bounds(image.masks, probs.float(), view, protocol, MaskLoss(), 0, rows)  # rounded alike
    alike = alike.T.reshape(true.shape)
    assert torch.allclose(alike, true, atol=2 * ROUNDING) and torch.allclose(scores, found, atol=2 * ROUNDING)
    assert (alike >= low - ROUNDING / 2).all()
    assert (alike <= high + (probs.sum(0) - inside)[:, None, None] + ROUNDING / 2).all()
    # the coarse bound that is stored: design's R + Σ p·ε
    epsilon = np.tanh(stored.loss.logit_error / 4) + (1 / (1 + np.exp(-codec.floor)) if codec.floor else 0)
    assert ((true - found).amax(0) <= stored.dropped_mass + epsilon * inside.sum() + ROUNDING).all()

    changed = true.argmax(0).numpy() != found.argmax(0).numpy()
    assert not (changed & certain).any()


def test_nothing_lost_leaves_only_ties_uncertain() -> None:
    view = VIEWS["larger image"]
    image = drawn(0, "real", view.mask)
    probs = fuse(image.logits, image.points, 0.4)[0]
    certain = certain_map(image.masks, probs, torch.arange(7), view, "mmseg1", MaskLoss())
    best = semantic_scores(image.masks, probs[None], view, "mmseg1")[0].topk(2, 0).values
    assert np.array_equal(certain, (best[0] - best[1] > ROUNDING).numpy())
    assert certain.mean() > 0.99


@pytest.mark.parametrize("loss", [MaskLoss(0.03, -2.0, 2), MaskLoss(0.4, -6.0, 2, 1 / 8)])
def test_certain_pixels_against_a_slow_loop(loss: MaskLoss) -> None:
    """Every pixel, class and query by itself, by the formulas of docs/storage.md, in bands of any height."""
    view = VIEWS["odd"]
    image = drawn(1, "real", view.mask)
    probs, kept = fuse(image.logits, image.points, 0.4)[0], torch.tensor([0, 2, 3, 5, 6])
    logits = torch.stack(list(iter_mask_logits(image.masks[kept], view))).numpy().astype(float)
    p, rest = probs[kept].numpy().astype(float), probs[[1, 4]].sum(0).numpy().astype(float)

    def error(x: float) -> float:
        if not loss.step:
            return loss.logit_error
        step, unit = loss.step, 2
        while unit <= abs(x) and step < 1:
            step, unit = 2 * step, unit + 1
        return min(step / 2, loss.logit_error)

    def share(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    expected = np.zeros(view.original, bool)
    for y, x in np.ndindex(*view.original):
        at = logits[:, y, x]
        s = sum(p[q] * share(at[q]) for q in range(5))
        low = sum((p[q] * share(at[q] - error(at[q])) for q in range(5) if at[q] > loss.floor), np.zeros(4))
        high = sum(p[q] * share(at[q] + error(at[q])) for q in range(5)) + rest
        winner = s.argmax()
        expected[y, x] = low[winner] > max(np.delete(high, winner)) + ROUNDING
    for budget in (1, 1 << 28):
        found = certain_map(image.masks[kept], probs, kept, view, "d2", loss, budget)
        assert np.array_equal(found, expected)
    assert 0.02 < expected.mean() < 0.98


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(sorted(VIEWS)), st.sampled_from(["real", "edges"]))
def test_floored_background_moves_no_outline(seed: int, view_name: str, kind: str) -> None:
    view = VIEWS[view_name]
    image = drawn(seed, kind, view.mask)
    codec = MaskCodec(0.0, mask_dtype="float32", floor=-3.0)
    stored = store_masks(image.masks, image.objectness, codec, source_reach(view))
    for true, found in zip(
        iter_mask_logits(image.masks, view), iter_mask_logits(torch.from_numpy(stored.masks), view), strict=True
    ):
        assert torch.equal(true >= -3, found >= -3 + 1e-5) or torch.equal(true > -2.99, found > -2.99)
        assert torch.equal(true[true > -2.99], found[true > -2.99])


def test_a_ring_too_small_does_move_scores() -> None:
    """Why the ring is there: the same codec with none breaks the bound."""
    view = VIEWS["larger image"]
    masks = torch.full((1, *view.mask), -60.0)
    masks[0, 4, 6] = 60.0
    probs, one = torch.ones(1, 1, 1), np.ones(1)
    true = semantic_scores(masks, probs, view, "d2")
    moved = []
    for ring in (0, 1, source_reach(view)):
        stored = store_masks(masks, one, MaskCodec(0.0, mask_dtype="float32", floor=-8.0), ring)
        found = semantic_scores(torch.from_numpy(stored.masks), probs, view, "d2")
        moved.append(float((found - true).max()))
    assert moved[0] > 0.5 and moved[2] < 1 / (1 + np.exp(8)) + 1e-6


def test_steps_that_grow_without_the_ring_break_their_bound() -> None:
    """Beside a jump a pixel near 0 reads cells far from it."""
    view, beyond = VIEWS["larger image"], []
    masks = torch.tensor([-5.45, 5.45]).repeat(view.mask[1] // 2).expand(1, *view.mask).contiguous()
    codec = MaskCodec(0.0, step=1 / 64, graded=True, mask_dtype="float32")
    for ring in (0, source_reach(view)):
        stored = store_masks(masks, np.ones(1), codec, ring)
        rounded = torch.from_numpy(stored.masks)
        low, high = list(score_bounds(rounded, torch.ones(1, 1), view, "d2", stored.loss, 0, 50))[1:]
        true = semantic_scores(masks, torch.ones(1, 1, 1), view, "d2").reshape(-1, 1)
        beyond.append(float(torch.maximum(low - true, true - high).max()))
    assert beyond[0] > 1e-3 and beyond[1] < ROUNDING


@pytest.mark.parametrize(("name", "reach"), [("same size", 1), ("larger image", 2), ("smaller image", 2)])
def test_how_far_a_pixel_reads(name: str, reach: int) -> None:
    """Against perturbing one cell at a time: which pixels change, and which cells they share."""
    view = VIEWS[name]
    assert source_reach(view) == reach
    reads = np.zeros((*view.mask, *view.original), bool)
    for y, x in np.ndindex(*view.mask):
        cell = torch.zeros(1, *view.mask)
        cell[0, y, x] = 1.0
        reads[y, x] = next(iter_mask_logits(cell, view)).numpy() != 0
    widest = 0
    for pixel in reads.reshape(*view.mask, -1).transpose(2, 0, 1):
        rows, columns = np.nonzero(pixel)
        widest = max(widest, np.ptp(rows), np.ptp(columns))
    assert widest == reach


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["d2", "mmdet"]),
    st.sampled_from(sorted(VIEWS)),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from(["renormalized", "raw"]),
    st.sampled_from([0.5, 0.8]),
)
def test_panoptic_exact_gives_the_same_panoptic_map(
    seed: int, rule_name: str, view_name: str, alpha: float, formula: str, threshold: float
) -> None:
    view = VIEWS[view_name]
    image = drawn(seed, "real", view.mask, queries=12)
    probs, no_object = fuse(image.logits, image.points, alpha, formula)
    codec = MaskCodec(**{**PRESETS["panoptic-exact"], "drop_threshold": 0.5})
    stored = store_masks(image.masks, image.objectness, codec, source_reach(view))
    kept = torch.from_numpy(stored.kept).long()
    rule, things = PanopticRule(rule_name, threshold, 0.6), np.array([True, True, False, False])
    true = panoptic_map(image.masks, probs, no_object, view, "d2", rule, things)
    found = panoptic_map(torch.from_numpy(stored.masks), probs[kept], no_object[kept], view, "d2", rule, things)
    assert np.array_equal(true[0], found[0]) and true[1] == found[1]


def test_windows_are_refused() -> None:
    view = View((32, 40), (32, 40), (32, 48), (8, 12), flip=True)
    with pytest.raises(IncompatibleError, match="is not an image"):
        certain_map(torch.zeros(1, 8, 12), torch.ones(1, 2), torch.arange(1), view, "d2", MaskLoss())
