from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.metrics.semantic import Confusion, areas, mean_iou


def images(n=6, k=7, seed=0, truth=5, nothing=False):
    """Ground truth of the classes below `truth` and void, predictions of all k classes; or `nothing` in every third."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        gt = rng.integers(-1, truth, (9, 11)).astype(np.int16)
        pred = np.where(rng.random(gt.shape) < 0.7, gt, rng.integers(0, k - 1, gt.shape)).astype(np.int16)
        yield np.where(gt == -1, 0, np.full_like(pred, -1) if nothing and number % 3 == 1 else pred), gt


@pytest.mark.parametrize("nothing", [False, True])
def test_against_a_loop(nothing):
    """Where nothing is predicted (−1), the ground truth is missed, and no class is called."""
    state = Confusion(7)
    counts = np.zeros((7, 8), int)
    for pred, gt in images(nothing=nothing):
        own = state.update(pred, gt)
        assert own.sum() == (gt >= 0).sum()
        for p, t in zip(pred.ravel(), gt.ravel(), strict=True):
            if t >= 0:
                counts[t, p] += 1
    assert (state.counts == counts).all() and state.counts.dtype == np.int64
    assert counts[:, 7].any() == nothing
    assert state.pixel_accuracy() == np.trace(counts) / counts.sum()
    for k in range(7):
        union = counts[k].sum() + counts[:, k].sum() - counts[k, k]
        iou = state.ious()[k]
        assert math.isnan(iou) if union == 0 else iou == counts[k, k] / union
    assert math.isnan(state.ious()[6])  # neither truth nor prediction
    assert state.ious()[5] == 0  # predicted only
    assert state.miou() == pytest.approx(state.ious()[:5].mean())
    assert state.miou("union") == pytest.approx(state.ious()[:6].mean())
    assert np.isnan(state.class_accuracies()).tolist() == [False] * 5 + [True] * 2


def test_union_is_mmsegs_iou_metric():
    mmcv_ops = importlib.import_module("vitp_pipeline.generators.openmmlab.mmcv_stub")
    mmcv_ops.prepare_mmcv()
    IoUMetric = importlib.import_module("mmseg.evaluation.metrics").IoUMetric
    metric = IoUMetric(ignore_index=255)
    metric.dataset_meta = {"classes": list("abcdefg")}
    state = Confusion(7)
    for pred, gt in images():
        state.update(pred, gt)
        truth = np.where(gt == -1, 255, gt)
        sample = {
            "pred_sem_seg": {"data": torch.tensor(pred)[None]},
            "gt_sem_seg": {"data": torch.tensor(truth)[None]},
        }
        metric.process({}, [sample])
    theirs = metric.compute_metrics(metric.results)
    assert round(100 * state.miou("union"), 2) == pytest.approx(theirs["mIoU"], abs=0.011)
    assert round(100 * state.pixel_accuracy(), 2) == pytest.approx(theirs["aAcc"], abs=0.011)
    assert abs(100 * state.miou("present") - theirs["mIoU"]) > 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_random_maps_against_mmseg(seed):
    """Counts equal, ratios to 1e-9, with classes that are empty on either side, void, and maps of one pixel."""
    importlib.import_module("vitp_pipeline.generators.openmmlab.mmcv_stub").prepare_mmcv()
    IoUMetric = importlib.import_module("mmseg.evaluation.metrics").IoUMetric
    rng, state, results = np.random.default_rng(seed), Confusion(6), []
    for _ in range(int(rng.integers(1, 4))):
        size = tuple(rng.integers(1, 9, 2))
        gt, pred = rng.choice(rng.integers(-1, 6, 4), size), rng.choice(rng.integers(0, 6, 4), size)
        pred = np.where(rng.random(size) < 0.5, gt.clip(0), pred)
        state.update(pred, gt)
        truth = torch.tensor(np.where(gt == -1, 255, gt))
        results.append(IoUMetric.intersect_and_union(torch.tensor(pred), truth, 6, 255))
    inter, union, predicted, labeled = (sum(x.double() for x in column) for column in zip(*results, strict=True))
    assert np.array_equal(state.areas(), torch.stack([inter, labeled, predicted], 1).numpy())
    if not labeled.sum():
        return
    figures = IoUMetric.total_area_to_metrics(inter, union, predicted, labeled)
    np.testing.assert_allclose(state.ious(), figures["IoU"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(state.class_accuracies(), figures["Acc"], rtol=0, atol=1e-9)
    assert state.miou("union") == pytest.approx(np.nanmean(figures["IoU"]), abs=1e-9)
    assert state.mean_accuracy() == pytest.approx(np.nanmean(figures["Acc"]), abs=1e-9)
    assert state.pixel_accuracy() == pytest.approx(float(figures["aAcc"]), abs=1e-9)


def test_states_add_up():
    whole, parts = Confusion(7), [Confusion(7), Confusion(7)]
    for i, (pred, gt) in enumerate(images()):
        whole.update(pred, gt)
        parts[i % 2].update(pred, gt)
    assert ((parts[0] + parts[1]).counts == whole.counts).all()
    parts[0].merge(parts[1])
    assert (Confusion(7, parts[0].counts).counts == whole.counts).all()
    stacked = np.stack([whole.counts, parts[1].counts])
    assert mean_iou(areas(stacked)).tolist() == [whole.miou(), parts[1].miou()]


def test_nothing_seen():
    state = Confusion(3)
    state.update(np.zeros((2, 2), np.int16), np.full((2, 2), -1, np.int16))
    assert math.isnan(state.miou()) and math.isnan(state.pixel_accuracy()) and np.isnan(state.ious()).all()


def test_bad_maps():
    state, zeros = Confusion(3), np.zeros((2, 2), np.int16)
    with pytest.raises(InputError):
        state.update(zeros, zeros + 3)
    with pytest.raises(InputError):
        state.update(zeros, zeros - 2)
    with pytest.raises(IncompatibleError):
        state.update(zeros - 2, zeros)
    with pytest.raises(IncompatibleError):
        state.update(zeros + 3, zeros)
    with pytest.raises(IncompatibleError):
        state.update(zeros[:1], zeros)
    with pytest.raises(IncompatibleError):
        state.merge(Confusion(4))
    assert state.counts.sum() == 0
    state.update(zeros - 1, zeros - 1)  # a prediction is not read where there is no label
    with pytest.raises(ValueError):
        state.miou("all")
