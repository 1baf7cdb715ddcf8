"""Labels by bounds against the argmax of all scores, on logits made to defeat them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.config.choices import PROTOCOLS
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess import label_bounds, mask_labels, panoptic, semantic
from vitp_pipeline.postprocess.blocks import block_cells, block_values, image_runs, pooled, upsampled_runs
from vitp_pipeline.postprocess.label_bounds import bounded_label_maps
from vitp_pipeline.postprocess.upsample import iter_mask_logits, iter_mask_probabilities, mask_logits_at_image

VIEWS = {
    "same": View((22, 30), (22, 30), (32, 32), (8, 8)),
    "eighth": View((50, 61), (50, 61), (64, 64), (8, 8)),
    "larger": View((41, 53), (20, 26), (32, 32), (8, 8)),
    "smaller": View((15, 17), (30, 34), (32, 36), (8, 9)),
    "odd": View((61, 49), (30, 30), (31, 33), (7, 11)),
    "one cell": View((9, 11), (9, 11), (9, 11), (1, 1)),
}
LARGEST_TIE = 2e-6


@st.composite
def masks_of(draw, view: View, queries: int) -> torch.Tensor:
    """(Q, h, w): noise, planes, steps, single cells, some of them repeated, of any steepness."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = view.mask
    down, across = np.mgrid[:height, :width]
    made = []
    for _ in range(queries):
        kind = draw(st.sampled_from(["noise", "plane", "step", "cell", "constant", "again"]))
        if kind == "again" and made:
            made.append(made[random.integers(len(made))].copy())
            continue
        plane = {
            "noise": random.normal(size=view.mask),
            "plane": random.normal() * (down - height / 2) + random.normal() * (across - width / 2),
            "step": np.where(down * random.normal() + across * random.normal() > 0, 1.0, -1.0),
            "cell": np.where((down == random.integers(height)) & (across == random.integers(width)), 1.0, -1.0),
        }.get(kind, np.full(view.mask, random.choice([0.0, 1.0, -1.0])))
        made.append(plane * draw(st.sampled_from([0.0, 1e-3, 1.0, 6.0, 40.0, 1e4])))
    return torch.from_numpy(np.stack(made)).float()


@st.composite
def probs_of(draw, queries: int) -> torch.Tensor:
    """(A, Q, K), with classes that tie exactly, few and many."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    classes, alphas = draw(st.sampled_from([1, 2, 5, 40])), draw(st.integers(1, 3))
    sharpness = draw(st.sampled_from([0.0, 1.0, 30.0]))
    probs = (sharpness * torch.randn(alphas, queries, classes + 1, generator=random)).softmax(-1)[..., :-1]
    if draw(st.booleans()):
        probs[..., classes // 2] = probs[..., -1]
    return probs


def agree(labels: np.ndarray, masks, probs, view, protocol) -> None:
    scores = semantic.semantic_scores(masks.double(), probs.double(), view, protocol)
    best = scores.amax(1)
    ours = scores.gather(1, torch.from_numpy(labels).long()[:, None])[:, 0]
    assert float((best - ours).max()) <= LARGEST_TIE * max(1.0, float(best.max()))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_label_is_worse_than_rounding(protocol, data):
    view = VIEWS[data.draw(st.sampled_from(sorted(VIEWS)))]
    queries = data.draw(st.integers(1, 8))
    masks, probs = data.draw(masks_of(view, queries)), data.draw(probs_of(queries))
    budget = data.draw(st.sampled_from([1, 10_000, 256 << 20]))
    maps = bounded_label_maps(masks, probs, view, protocol, budget)
    if maps is not None:
        assert maps.dtype == np.int16 and maps.shape == (len(probs), *view.original)
        # float32 cannot place a value between cells of ±1e4 better than this
        if masks.abs().max() <= 50:
            agree(maps, masks, probs, view, protocol)
        else:
            whole = semantic.semantic_scores(masks, probs, view, protocol)
            clear = (whole.topk(2, 1).values.diff(dim=1).abs()[:, 0] > 2e-2) if probs.shape[2] > 1 else whole[:, 0] > -1
            assert (maps == whole.argmax(1).numpy())[clear.numpy()].all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VIEWS)
def test_smooth_masks_are_labeled_without_the_plain_way(name, protocol, monkeypatch):
    view = VIEWS[name]
    random = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 12, 3, 3, generator=random) * 9
    masks = torch.nn.functional.interpolate(coarse, view.mask, mode="bilinear")[0]
    probs = (4 * torch.randn(2, 12, 50, generator=random)).softmax(-1)
    pays = name not in ("smaller",) or protocol == "mmseg1"
    scored = []
    largest = label_bounds.first_largest
    monkeypatch.setattr(
        label_bounds, "first_largest", lambda scores: (scored.append(scores.shape[1]), largest(scores))[1]
    )
    maps = bounded_label_maps(masks, probs, view, protocol)
    assert (maps is not None) == pays
    if pays:
        agree(maps, masks, probs, view, protocol)
        assert name != "eighth" or sum(scored) < 0.8 * maps.size  # bounds decide the rest


def test_logits_that_are_not_finite_go_the_plain_way():
    view = VIEWS["same"]
    masks, probs = torch.zeros(2, 8, 8), torch.full((1, 2, 3), 0.3)
    for value in (np.inf, -np.inf, np.nan):
        masks[1, 3, 3] = value
        assert bounded_label_maps(masks, probs, view, "d2") is None
        assert semantic.semantic_label_maps(masks, probs, view, "d2").shape == (1, *view.original)


def test_only_whole_views_have_blocks():
    window = View((60, 80), (60, 80), (32, 32), (8, 8), window=(10, 20, 32, 32))
    masks, gt = torch.ones(2, 8, 8), np.zeros((60, 80), np.int16)
    assert image_runs(window, 0) is None and image_runs(replace(VIEWS["same"], flip=True), 1) is None
    assert (mask_labels.majority_label(masks, window, gt) == 0).all()


def test_half_precision_masks():
    view = VIEWS["same"]
    masks, probs = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(2)).half() * 5, torch.rand(1, 5, 4)
    assert (
        bounded_label_maps(masks, probs, view, "mmseg1") == bounded_label_maps(masks.float(), probs, view, "mmseg1")
    ).all()


@pytest.mark.parametrize("name", VIEWS)
def test_blocks_hold_the_pixels_of_the_image(name):
    """Every pixel is in its block with its value, and within the block's bounds."""
    view = VIEWS[name]
    rows, columns = image_runs(view, 0), image_runs(view, 1)
    if rows is None or columns is None:
        assert name == "smaller"
        rows, columns = upsampled_runs(view, 0), upsampled_runs(view, 1)
        view = View(view.resized, view.resized, view.padded, view.mask)
    masks = torch.randn(3, *view.mask, generator=torch.Generator().manual_seed(3)) * 10
    whole = mask_logits_at_image(masks, view)
    for start in (0, len(rows) - 1):
        cells = block_cells(masks, rows, columns, start, len(rows)).contiguous()
        least, most = (pooled(cells, rows, columns, pick) for pick in (torch.minimum, torch.maximum))
        row, column = (x.ravel() for x in np.mgrid[start : len(rows), : len(columns)])
        values = block_values(cells, rows, columns, row, column, start)
        expected = whole[:, rows.outputs[row].T[:, None], columns.outputs[column].T[None]]
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)  # torch has float32 weights
        assert (values >= least.flatten(1)[:, None, None] - 1e-4).all()
        assert (values <= most.flatten(1)[:, None, None] + 1e-4).all()
    for runs, size in zip((rows, columns), view.original, strict=True):
        assert sorted(set(runs.outputs.ravel().tolist())) == list(range(size))
        assert all(g in runs.run_of[runs.outputs[g]] for g in range(len(runs)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_masks_compete_by_blocks_as_by_planes(protocol, data):
    """Owners have the largest weight, claims and their areas are those of all pixels, but for rounding."""
    view = VIEWS[data.draw(st.sampled_from(["same", "eighth", "larger", "odd"]))]
    queries = data.draw(st.integers(1, 6))
    masks = data.draw(masks_of(view, queries)).clamp(-50, 50)
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = torch.rand(queries, generator=random).round(decimals=data.draw(st.sampled_from([0, 1, 6])))
    rule = panoptic.PanopticRule()
    owner, claimed, areas = panoptic._compete(masks, scores, view, protocol, rule)
    planes = torch.stack(list(iter_mask_probabilities(masks, view, protocol)))
    weights = (planes * scores[:, None, None]).numpy()
    own = np.take_along_axis(weights, owner[None].astype(np.int64), 0)[0]
    assert (own >= weights.max(0) * (1 - 2e-3) - 1e-30).all()
    values = np.take_along_axis(planes.numpy(), owner[None].astype(np.int64), 0)[0]
    clear = np.abs(values - 0.5) > 1e-4
    assert (claimed == (values >= 0.5))[clear].all()
    unsure = ((planes - 0.5).abs() <= 1e-4).sum((1, 2)).numpy()
    assert (np.abs((planes >= 0.5).sum((1, 2)).numpy() - areas) <= unsure).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_labels_inside_masks_are_counted_by_blocks_as_by_planes(data):
    view = VIEWS[data.draw(st.sampled_from(["same", "eighth", "larger", "odd", "one cell"]))]
    masks = data.draw(masks_of(view, data.draw(st.integers(1, 6)))).clamp(-50, 50)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    coarse = random.integers(-1, 4, (9, 9)).astype(np.int16)
    gt = np.kron(coarse, np.ones((8, 8), np.int16))[: view.original[0], : view.original[1]]
    gt[random.random(gt.shape) < data.draw(st.sampled_from([0.0, 0.1]))] = 3
    rows, columns = image_runs(view, 0), image_runs(view, 1)
    found = mask_labels._counts_by_blocks(masks, rows, columns, gt, 4)
    unsure = np.stack([((p.abs() < 1e-3) & (p != 0)).numpy() for p in iter_mask_logits(masks, view)]).sum((1, 2))
    assert (np.abs(found - mask_labels._counts_by_planes(masks, view, gt, 4)).sum(1) <= unsure).all()
