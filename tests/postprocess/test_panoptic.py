from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map
from vitp_pipeline.postprocess.upsample import iter_mask_probabilities

VIEW = View((24, 30), (24, 30), (32, 32), (8, 8))
RESIZED = View((31, 40), (24, 30), (32, 32), (8, 8))
K = 5
THINGS = np.array([True, True, True, False, False])


def example(seed: int, queries: int = 12):
    """Blobs with confident classes, so that segments overlap, die and merge."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, queries, 3, 3, generator=generator) * 6
    masks = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")[0]
    logits = torch.randn(queries, K + 1, generator=generator) * 4
    logits[:, 3:5] += 2  # enough stuff to be merged
    return masks, logits, logits.softmax(-1)


def run(masks, probs, view, rule, protocol="d2"):
    return panoptic_map(masks, probs[:, :-1], probs[:, -1], view, protocol, rule, THINGS)


def detectron2(masks, probs, rule):
    """The inference of Mask2Former and OneFormer, pixel by pixel."""
    height, width = masks.shape[1:]
    taking = [
        (q, int(probs[q].argmax()), float(probs[q].max()))
        for q in range(len(masks))
        if int(probs[q].argmax()) < K and float(probs[q].max()) > rule.object_threshold
    ]
    ids, segments, stuff = np.zeros((height, width), int), [], {}
    if not taking:
        return ids, segments
    owner = np.zeros((height, width), int)
    for row in range(height):
        for col in range(width):
            weights = [np.float32(score) * masks[q, row, col].numpy() for q, _, score in taking]
            owner[row, col] = int(np.argmax(weights))
    for index, (q, label, _) in enumerate(taking):
        owned = owner == index
        claimed = masks[q].numpy() >= 0.5
        both = owned & claimed
        if owned.sum() == 0 or claimed.sum() == 0 or both.sum() == 0:
            continue
        if owned.sum() / claimed.sum() < rule.overlap_threshold:
            continue
        if not THINGS[label] and label in stuff:
            ids[both] = stuff[label]
            continue
        segments.append((len(segments) + 1, label))
        stuff[label] = len(segments)
        ids[both] = len(segments)
    return ids, segments


@pytest.mark.parametrize("view, protocol", [(VIEW, "d2"), (RESIZED, "d2"), (RESIZED, "mmseg1")])
@pytest.mark.parametrize("seed", range(6))
def test_d2_rule(seed, view, protocol):
    masks, _, probs = example(seed)
    rule = PanopticRule(object_threshold=0.4, overlap_threshold=0.3)
    ids, segments = run(masks, probs, view, rule, protocol)
    at_image = torch.stack(list(iter_mask_probabilities(masks, view, protocol)))
    expected, expected_segments = detectron2(at_image, probs, rule)
    assert ids.dtype == np.int32 and (ids == expected).all()
    assert [(s.id, s.category) for s in segments] == expected_segments
    assert set(np.unique(ids)) - {0} == {s.id for s in segments}
    assert all(0.4 < s.score <= 1 for s in segments)


@pytest.mark.parametrize("filter_low_score", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_mmdet_rule_is_mmdets(seed, filter_low_score):
    """mmdetection's own code on the same masks."""
    mmcv_ops = importlib.import_module("vitp_pipeline.generators.openmmlab.mmcv_stub")
    mmcv_ops.prepare_mmcv()
    heads = importlib.import_module("mmdet.models.seg_heads.panoptic_fusion_heads.maskformer_fusion_head")
    from mmdet.evaluation.functional import INSTANCE_OFFSET

    masks, logits, probs = example(seed)
    config = {"object_mask_thr": 0.4, "iou_thr": 0.3, "filter_low_score": filter_low_score}
    head = SimpleNamespace(test_cfg=config, num_classes=K, num_things_classes=3)
    whole = torch.nn.functional.interpolate(masks[None], VIEW.padded, mode="bilinear")[0][:, :24, :30]
    theirs = heads.MaskFormerFusionHead.panoptic_postprocess(head, logits, whole).sem_seg[0].numpy()

    rule = PanopticRule("mmdet", 0.4, 0.3, filter_low_score=filter_low_score)
    ids, segments = run(masks, probs, VIEW, rule, "mmdet")
    category = np.array([K] + [s.category for s in segments])
    assert (category[ids] == theirs % INSTANCE_OFFSET).all()
    pairs = set(zip(ids.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(ids)) == len(np.unique(theirs))  # the same partition


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_operations_is_mmdets(seed):
    """Its fusion head's own way from the padded frame to the original image, where that is of another size."""
    mmcv_ops = importlib.import_module("vitp_pipeline.generators.openmmlab.mmcv_stub")
    mmcv_ops.prepare_mmcv()
    heads = importlib.import_module("mmdet.models.seg_heads.panoptic_fusion_heads.maskformer_fusion_head")
    from mmdet.evaluation.functional import INSTANCE_OFFSET

    masks, logits, probs = example(seed)
    config = {"object_mask_thr": 0.4, "iou_thr": 0.3}
    head = SimpleNamespace(test_cfg=config, num_classes=K, num_things_classes=3)
    seen = []

    def panoptic(classes, at_image):
        seen.append(at_image)
        return heads.MaskFormerFusionHead.panoptic_postprocess(head, classes, at_image)

    head.panoptic_postprocess = panoptic
    upsampled = torch.nn.functional.interpolate(masks[None], RESIZED.padded, mode="bilinear")
    sample = SimpleNamespace(metainfo={"img_shape": RESIZED.resized, "ori_shape": RESIZED.original})
    found = heads.MaskFormerFusionHead.predict(head, logits[None], upsampled, [sample], rescale=True)[0]
    theirs = found["pan_results"].sem_seg[0].numpy()
    at_image = torch.stack(list(iter_mask_probabilities(masks, RESIZED, "mmdet")))
    torch.testing.assert_close(at_image, seen[0].sigmoid(), atol=1e-6, rtol=0)
    ids, segments = run(masks, probs, RESIZED, PanopticRule("mmdet", 0.4, 0.3), "mmdet")
    category = np.array([K] + [s.category for s in segments])
    assert (category[ids] == theirs % INSTANCE_OFFSET).all()


def test_stuff_merges_with_the_best_score_and_things_do_not():
    masks = torch.full((4, 8, 8), -8.0)
    for q, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))):
        masks[q, rows] = 8.0
    probs = torch.zeros(4, K + 1)
    probs[0, 4], probs[1, 0], probs[2, 4], probs[3, 0] = 0.9, 0.95, 0.97, 0.85
    probs[:, -1] = 1 - probs.sum(1)
    view = View((32, 32), (32, 32), (32, 32), (8, 8))
    ids, segments = run(masks, probs, view, PanopticRule())
    assert [(s.id, s.category, round(s.score, 2)) for s in segments] == [(1, 4, 0.97), (2, 0, 0.95), (3, 0, 0.85)]
    assert [ids[r, 5] for r in (4, 12, 20, 28)] == [1, 2, 1, 3]


def test_thresholds_are_strict_where_they_should_be():
    masks = torch.zeros(1, 8, 8)  # sigmoid 0.5: claimed
    probs = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.0, 0.5]])
    assert not run(masks, probs, VIEW, PanopticRule(object_threshold=0.5))[1]
    ids, segments = run(masks, probs, VIEW, PanopticRule(object_threshold=0.4))
    assert (ids == 1).all() and segments[0].category == 0  # a tie with no object names the class


def test_nothing_found():
    masks, _, probs = example(0)
    for queries in (len(masks), 0):
        ids, segments = run(masks[:queries], probs[:queries], VIEW, PanopticRule(object_threshold=1.0))
        assert not ids.any() and not segments and ids.shape == VIEW.original


def test_bad_arguments():
    masks, _, probs = example(0)
    with pytest.raises(UsageError):
        PanopticRule("mmseg")
    with pytest.raises(UsageError):
        PanopticRule(overlap_threshold=80)
    with pytest.raises(IncompatibleError):
        panoptic_map(masks, probs, probs[:, -1], VIEW, "d2", PanopticRule(), THINGS)
