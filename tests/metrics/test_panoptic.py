from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.metrics.panoptic import PanopticQuality, count


@dataclass
class Pred:
    id: int
    category: int


@dataclass
class Truth:
    id: int
    category: int
    iscrowd: bool = False


def slow_count(pred_ids, pred_segments, gt_ids, gt_segments, k):
    """The definition of the COCO panoptic task, segment by segment with sets of pixels."""
    tp, fp, fn, iou_sum = [0] * k, [0] * k, [0] * k, [0.0] * k
    pixels = list(np.ndindex(pred_ids.shape))
    preds = {s.id: {p for p in pixels if pred_ids[p] == s.id} for s in pred_segments}
    truths = {s.id: {p for p in pixels if gt_ids[p] == s.id} for s in gt_segments}
    void = {p for p in pixels if gt_ids[p] == 0}
    matched_preds, matched_truths = set(), set()
    for t in gt_segments:
        for p in pred_segments:
            if t.iscrowd or t.category != p.category:
                continue
            a, b = preds[p.id] - void, truths[t.id]
            if a & b and len(a & b) / len(a | b) > 0.5:
                assert p.id not in matched_preds and t.id not in matched_truths
                matched_preds.add(p.id)
                matched_truths.add(t.id)
                tp[t.category] += 1
                iou_sum[t.category] += len(a & b) / len(a | b)
    for t in gt_segments:
        if t.id not in matched_truths and not t.iscrowd:
            fn[t.category] += 1
    for p in pred_segments:
        if p.id in matched_preds:
            continue
        forgiven = len(preds[p.id] & void)
        for t in gt_segments:
            if t.iscrowd and t.category == p.category:
                forgiven += len(preds[p.id] & truths[t.id])
        if forgiven / len(preds[p.id]) <= 0.5:
            fp[p.category] += 1
    return tp, fp, fn, iou_sum


def random_case(seed: int, k: int = 3):
    """A ground truth with void, crowds and single pixels, and a prediction that resembles it; ids up to
    2^24.
    """
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, 2))
    n = int(rng.integers(0, 7))
    ids = [0, *(rng.choice(2**24, n, replace=False) + 1).tolist()]
    if rng.random() < 0.2 and n:
        ids[1] = 2**24
        ids = list(dict.fromkeys(ids))
    coarse = rng.integers(0, len(ids), (3, 3))
    gt = np.kron(coarse, np.ones((5, 5), int))[: shape[0], : shape[1]]
    if len(ids) > 1 and rng.random() < 0.5:
        gt[tuple(rng.integers(0, s) for s in shape)] = rng.integers(1, len(ids))
    used = [i for i in range(1, len(ids)) if (gt == i).any() or rng.random() < 0.1]
    category = rng.integers(0, k, len(ids))
    gt_segments = [Truth(ids[i], int(category[i]), bool(rng.random() < 0.3)) for i in used]

    moved = np.roll(gt, rng.integers(0, 2, 2), (0, 1))
    noise = rng.random(shape) < rng.choice([0.0, 0.1, 0.5])
    pred = np.where(noise, rng.integers(0, len(ids), shape), moved)
    pred_names = [0, *rng.permutation(100)[: len(ids)].tolist()]
    pred_names = [0] + [v + 1 for v in pred_names[1:]]
    pred_segments = []
    for i in range(1, len(ids)):
        if (pred == i).any():
            right = rng.random() < 0.8
            pred_segments.append(Pred(pred_names[i], int(category[i]) if right else int(rng.integers(0, k))))
    return np.array(pred_names)[pred], pred_segments, np.array(ids, np.int32)[gt], gt_segments


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_against_the_definition(seed):
    case = random_case(seed)
    counts = count(*case, 3)
    tp, fp, fn, iou = slow_count(*case, 3)
    assert counts.tp.tolist() == tp and counts.fp.tolist() == fp and counts.fn.tolist() == fn
    np.testing.assert_allclose(counts.iou, iou, rtol=1e-12)
    assert counts.tp.dtype == np.int64 and counts.iou.dtype == np.float64


def test_a_perfect_prediction_and_its_averages():
    gt = np.array([[1, 1, 2, 2], [3, 3, 0, 4]])
    segments = [Truth(1, 0), Truth(2, 0), Truth(3, 2), Truth(4, 1, True)]
    quality = PanopticQuality(4, [True, True, False, False])
    quality.update(gt, segments, gt, segments)  # the crowd's copy lies on a crowd: forgiven
    summary = quality.summary()
    assert (summary["all"].pq, summary["all"].sq, summary["all"].rq, summary["all"].classes) == (1, 1, 1, 2)
    assert summary["things"].classes == summary["stuff"].classes == 1
    assert np.isnan(quality.per_class()["pq"]).tolist() == [False, True, False, True]


def test_void_and_crowd_rules_by_hand():
    gt = np.array([[1] * 10 + [0] * 10, [2] * 20])
    truth = [Truth(1, 0), Truth(2, 1, True)]
    pred = np.array([[5] * 20, [6] * 20])
    counts = count(pred, [Pred(5, 0), Pred(6, 1)], gt, truth, 2)
    assert counts.tp.tolist() == [1, 0] and counts.iou[0] == 1.0  # void is taken out of the union
    assert counts.fp.tolist() == [0, 0] and counts.fn.tolist() == [0, 0]  # on a crowd of its class
    counts = count(pred, [Pred(5, 1), Pred(6, 0)], gt, truth, 2)
    assert counts.fp.tolist() == [1, 1]  # exactly half void is not more than half; a crowd of another class
    assert counts.fn.tolist() == [1, 0]


def test_exactly_half_is_no_match():
    gt, pred = np.array([[1, 1, 1, 1]]), np.array([[7, 7, 0, 0]])
    counts = count(pred, [Pred(7, 0)], gt, [Truth(1, 0)], 1)
    assert (counts.tp[0], counts.fp[0], counts.fn[0]) == (0, 1, 1)
    quality = PanopticQuality(1, [True], counts)
    assert quality.per_class()["sq"][0] == quality.summary()["all"].pq == 0


def test_states_add_up():
    whole, parts = PanopticQuality(3, [1, 1, 0]), [PanopticQuality(3, [1, 1, 0]) for _ in range(2)]
    for seed in range(20):
        whole.update(*random_case(seed))
        parts[seed % 2].update(*random_case(seed))
    parts[0].merge(parts[1])
    again = PanopticQuality(3, [1, 1, 0], parts[0].counts)
    for name in ("tp", "fp", "fn", "iou"):
        np.testing.assert_allclose(getattr(again.counts, name), getattr(whole.counts, name))
    # PQ = SQ * RQ per class
    per_class = whole.per_class()
    np.testing.assert_allclose(per_class["pq"], per_class["sq"] * per_class["rq"])
    seen = ~np.isnan(per_class["pq"])
    assert whole.summary()["all"].pq == pytest.approx(per_class["pq"][seen].mean())


def test_empty_sides():
    gt, none = np.array([[1, 1]]), np.array([[0, 0]])
    assert count(none, [], gt, [Truth(1, 0)], 1).fn.tolist() == [1]
    assert count(gt, [Pred(1, 0)], none, [], 1).fp.tolist() == [0]  # all of it on void
    assert count(none, [], none, [], 1).fn.tolist() == [0]
    assert math.isnan(PanopticQuality(1, [True]).summary()["all"].pq)


def test_bad_maps():
    ids, seg, truth = np.array([[1, 2]]), [Pred(1, 0), Pred(2, 0)], [Truth(1, 0), Truth(2, 0)]
    with pytest.raises(IncompatibleError):
        count(ids[:, :1], seg, ids, truth, 1)
    for bad in ([Pred(1, 0)], [*seg, Pred(3, 0)], [Pred(1, 0), Pred(2, 1)], [*seg, Pred(1, 0)]):
        with pytest.raises(IncompatibleError):
            count(ids, bad, ids, truth, 1)
    for bad in ([Truth(1, 0)], [Truth(2, 0)], [Truth(1, 0), Truth(2, 5)], [*truth, Truth(0, 0)]):
        with pytest.raises(InputError):
            count(ids, seg, ids, bad, 1)
    with pytest.raises(IncompatibleError):
        PanopticQuality(2, [True])
    with pytest.raises(IncompatibleError):
        PanopticQuality(1, [True]).merge(PanopticQuality(1, [False]))


def coco_truth(shared, n):
    folder = shared / "data" / "coco"
    data = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    index = {c["id"]: k for k, c in enumerate(data["categories"])}
    # images with crowds first: they are rare
    annotations = sorted(data["annotations"], key=lambda a: -sum(s["iscrowd"] for s in a["segments_info"]))
    for annotation in annotations[:n]:
        rgb = np.asarray(Image.open(folder / "panoptic_val2017" / annotation["file_name"]).convert("RGB"), int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        segments = annotation["segments_info"]
        yield ids, segments, [Truth(s["id"], index[s["category_id"]], bool(s["iscrowd"])) for s in segments]


def test_real_ground_truth(shared):
    """Shifted COCO ground truth as the prediction, at a quarter of the resolution for the slow definition."""
    for ids, annotated, truth in coco_truth(shared, 5):
        areas = {s["id"]: s["area"] for s in annotated}
        assert {v: int((ids == v).sum()) for v in areas} == areas  # the annotation's areas are the map's
        counts = count(ids, truth, ids, truth, 133)
        crowds = sum(t.iscrowd for t in truth)
        assert counts.tp.sum() == len(truth) - crowds == round(counts.iou.sum(), 9)
        assert counts.fp.sum() == counts.fn.sum() == 0

        small = ids[::6, ::6]
        truth = [t for t in truth if (small == t.id).any()]
        pred = np.roll(small, (3, 2), (0, 1))
        case = pred, [Pred(t.id, t.category) for t in truth], small, truth
        counts = count(*case, 133)
        for ours, slow in zip((counts.tp, counts.fp, counts.fn, counts.iou), slow_count(*case, 133), strict=True):
            np.testing.assert_allclose(ours, slow)
