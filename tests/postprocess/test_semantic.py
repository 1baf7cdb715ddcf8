from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vitp_pipeline.config.choices import PROTOCOLS
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.semantic import semantic_label_maps, semantic_scores
from vitp_pipeline.postprocess.upsample import (
    image_logit_band,
    iter_mask_logits,
    iter_mask_probabilities,
    mask_logits_at_image,
)

VIEWS = {
    "same": View((20, 26), (20, 26), (32, 32), (8, 8)),
    "smaller": View((13, 17), (26, 34), (32, 64), (8, 16)),
    "larger": View((41, 50), (20, 26), (32, 32), (8, 8)),
    "odd": View((41, 19), (30, 30), (30, 31), (7, 11)),
}


def example(view: View, queries: int = 6, classes: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(queries, *view.mask, generator=generator) * 4
    logits = torch.randn(3, queries, classes + 1, generator=generator) * 3
    return masks, logits.softmax(-1)[..., :-1], logits


def slow_scores(masks, probs, view, protocol):
    """Class by class and query by query, in float64."""

    def resize(plane, size):
        return F.interpolate(plane[None, None], size, mode="bilinear")[0, 0]

    out = torch.zeros(probs.shape[1], *view.original, dtype=torch.float64)
    for k in range(probs.shape[1]):
        if protocol == "mmseg0":
            small = sum(probs[q, k] * masks[q].double().sigmoid() for q in range(len(masks)))
            out[k] = resize(resize(small, view.padded)[: view.resized[0], : view.resized[1]], view.original)
            continue
        early = torch.zeros(view.padded, dtype=torch.float64)
        for q in range(len(masks)):
            padded = resize(masks[q].double(), view.padded)
            if protocol == "mmseg1":
                early += probs[q, k] * padded.sigmoid()
            else:
                cropped = padded[: view.resized[0], : view.resized[1]]
                out[k] += probs[q, k] * resize(cropped, view.original).sigmoid()
        if protocol == "mmseg1":
            out[k] = resize(early[: view.resized[0], : view.resized[1]], view.original)
    return out


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VIEWS)
def test_scores_and_labels_against_a_loop(name, protocol):
    view = VIEWS[name]
    masks, probs, _ = example(view)
    scores = semantic_scores(masks, probs, view, protocol)
    assert scores.dtype == torch.float32
    for a in range(len(probs)):
        expected = slow_scores(masks, probs[a], view, protocol)
        torch.testing.assert_close(scores[a].double(), expected, atol=1e-5, rtol=0)
    labels = semantic_label_maps(masks, probs, view, protocol)
    assert labels.dtype == np.int16
    two_best = scores.topk(2, dim=1).values
    clear = (two_best[:, 0] - two_best[:, 1] > 1e-5).numpy()
    assert clear.mean() > 0.99
    assert (labels == scores.argmax(1).numpy())[clear].all()
    for budget in (1, 40_000):  # one row at a time, some rows
        again = semantic_label_maps(masks, probs, view, protocol, budget_bytes=budget)
        assert (again == labels)[clear].all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(VIEWS)), st.data())
def test_a_band_equals_its_rows_of_the_whole(name, data):
    view = VIEWS[name]
    masks = example(view)[0]
    start = data.draw(st.integers(0, view.original[0] - 1))
    stop = data.draw(st.integers(start + 1, view.original[0]))
    whole = mask_logits_at_image(masks, view)
    torch.testing.assert_close(image_logit_band(masks, view, start, stop), whole[:, start:stop], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VIEWS)
def test_one_query_at_a_time(name):
    view = VIEWS[name]
    masks = example(view)[0]
    whole = mask_logits_at_image(masks, view)
    torch.testing.assert_close(torch.stack(list(iter_mask_logits(masks, view))), whole)
    late = torch.stack(list(iter_mask_probabilities(masks, view, "d2")))
    torch.testing.assert_close(late, whole.sigmoid())
    early = torch.stack(list(iter_mask_probabilities(masks, view, "mmseg1")))
    named = torch.eye(len(masks))[None]  # with one class per query, the class score is the mask
    torch.testing.assert_close(semantic_scores(masks, named, view, "mmseg1")[0], early)
    earliest = torch.stack(list(iter_mask_probabilities(masks, view, "mmseg0")))
    torch.testing.assert_close(semantic_scores(masks, named, view, "mmseg0")[0], earliest)
    assert torch.allclose(early, late) == (view.resized == view.original)


@pytest.mark.parametrize("name", VIEWS)
def test_the_order_of_operations_is_mmsegs(name):
    """mmsegmentation's own code, run on the same network output."""
    mmcv_ops = importlib.import_module("vitp_pipeline.generators.openmmlab.mmcv_stub")
    mmcv_ops.prepare_mmcv()
    heads = importlib.import_module("mmseg.models.decode_heads.mask2former_head")
    segmentors = importlib.import_module("mmseg.models.segmentors.base")
    from mmseg.structures import SegDataSample

    view = VIEWS[name]
    masks, probs, logits = example(view)
    meta = {
        "pad_shape": view.padded,
        "ori_shape": view.original,
        "img_shape": view.resized,
        "padding_size": [0, view.padded[1] - view.resized[1], 0, view.padded[0] - view.resized[0]],
    }

    def head(x, samples):
        return [logits[:1]], [masks[None]]

    scores = heads.Mask2FormerHead.predict(head, None, [meta], {})
    model = SimpleNamespace(align_corners=False, decode_head=None)
    result = segmentors.BaseSegmentor.postprocess_result(model, scores, [SegDataSample(metainfo=meta)])[0]
    ours = semantic_scores(masks, probs[:1], view, "mmseg1")[0]
    torch.testing.assert_close(ours, result.seg_logits.data, atol=2e-6, rtol=0)
    assert (semantic_label_maps(masks, probs[:1], view, "mmseg1")[0] == result.pred_sem_seg.data[0].numpy()).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VIEWS)
def test_where_no_mask_has_a_class_nothing_is_predicted(name, protocol):
    view = VIEWS[name]
    masks, probs, _ = example(view)
    assert semantic_label_maps(masks, probs[:0], view, protocol).shape == (0, *view.original)
    assert (semantic_label_maps(masks[:0], probs[:, :0], view, protocol) == IGNORE).all()
    whole = semantic_label_maps(masks, probs, view, protocol)
    probs = torch.cat([probs, torch.zeros_like(probs[:1])])
    labels = semantic_label_maps(masks, probs, view, protocol)
    assert (labels[-1] == IGNORE).all() and np.array_equal(labels[:-1], whole)


def test_bad_arguments():
    view = VIEWS["same"]
    masks, probs, _ = example(view)
    with pytest.raises(UsageError):
        semantic_scores(masks, probs, view, "mmseg2")
    with pytest.raises(IncompatibleError):
        semantic_label_maps(masks, probs[:, 1:], view, "d2")
    with pytest.raises(IncompatibleError):
        semantic_scores(masks, probs, VIEWS["odd"], "d2")
    with pytest.raises(IncompatibleError, match="not an image"):
        semantic_label_maps(masks, probs, replace(view, flip=True), "d2")
