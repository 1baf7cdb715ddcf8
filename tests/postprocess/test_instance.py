from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.decoding.rle import decode_mask, encode_mask, encode_part
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess import instance
from vitp_pipeline.postprocess.instance import best_pairs, instance_masks
from vitp_pipeline.postprocess.upsample import mask_logits_at_resized, resize_planes


def official(logits: torch.Tensor, masks: torch.Tensor, view: View, things: int, limit: int) -> set:
    """mmdetection's MaskFormerFusionHead on the masks in the padded frame: (class, mask, score to 5 digits)."""
    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

    prepare_mmcv()
    from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
    from mmdet.structures import DetDataSample

    classes = logits.shape[1] - 1
    head = MaskFormerFusionHead(
        num_things_classes=things,
        num_stuff_classes=classes - things,
        test_cfg={"panoptic_on": False, "instance_on": True, "max_per_image": limit},
    )
    up = torch.nn.functional.interpolate(masks[None], view.padded, mode="bilinear", align_corners=False)[0]
    sample = DetDataSample(metainfo={"img_shape": view.resized, "ori_shape": view.original})
    found = head.predict(logits[None], up[None], [sample], rescale=True)[0]["ins_results"]
    columns = zip(found.labels.tolist(), found.masks.numpy(), found.scores.tolist(), strict=True)
    return {(label, mask.tobytes(), round(score, 5)) for label, mask, score in columns}


@pytest.mark.parametrize("protocol", ["mmdet", "d2"])
@pytest.mark.parametrize("limit", [1, 12, 30])
def test_equal_to_mmdetections_fusion_head(protocol: str, limit: int) -> None:
    torch.manual_seed(limit)
    view = View((37, 50), (30, 40), (32, 48), (8, 12))
    logits, masks = 3 * torch.randn(6, 6), 4 * torch.randn(6, *view.mask)
    things = np.array([True, True, True, False, False])
    probs = logits.softmax(1)[:, :5]
    pairs = best_pairs(probs, things, limit)
    drawn = instance_masks(masks, view, protocol)
    ours = {
        (int(k), decode_mask(drawn[q].rle).tobytes(), round(float(p) * drawn[q].quality, 5))
        for q, k, p in zip(pairs.queries, pairs.categories, pairs.probs, strict=True)
    }
    assert ours == official(logits, masks, view, 3, limit) and len(ours) == len(pairs) > 0
    assert (np.diff(pairs.probs) <= 0).all()


def test_ties_zeros_and_limits() -> None:
    probs = np.array([[0.5, 0.0, 0.2], [0.5, 0.3, 0.0], [0.0, 0.0, 0.0]], np.float32)
    pairs = best_pairs(probs, np.array([True, True, False]), 4)
    # stuff takes one of the four places
    assert (pairs.queries.tolist(), pairs.categories.tolist()) == ([0, 1, 1], [0, 0, 1])
    assert len(best_pairs(probs, np.array([True] * 3), 0)) == 3  # as many as queries
    assert len(best_pairs(probs, np.array([True] * 3), 100)) == 4  # none of probability 0
    with pytest.raises(IncompatibleError):
        best_pairs(probs, np.array([True]), 4)
    # the lower query, then the lower class first: an unstable sort of so many mixes equal ones
    probs = np.random.default_rng(0).integers(1, 4, (50, 8)).astype(np.float32) / 8
    expected = sorted(((q, k) for q in range(50) for k in range(8)), key=lambda pair: -probs[pair])[:300]
    pairs = best_pairs(probs, np.array([True] * 8), 300)
    assert list(zip(pairs.queries.tolist(), pairs.categories.tolist(), strict=True)) == expected


def test_masks_that_are_empty_full_or_one_pixel() -> None:
    view = View((4, 6), (4, 6), (4, 6), (4, 6))
    logits = torch.full((3, 4, 6), -2.0)
    logits[1] = 1.0
    logits[2, 1, 3] = 0.5
    for protocol in ("d2", "mmdet", "mmseg1"):
        drawn = instance_masks(logits, view, protocol)
        assert [decode_mask(m.rle).sum() for m in drawn] == [0, 24, 1]
        expected = [0.0, torch.sigmoid(torch.tensor(1.0)), torch.sigmoid(torch.tensor(0.5))]
        assert [m.quality for m in drawn] == pytest.approx([float(e) for e in expected], rel=2e-6)
    assert instance_masks(logits[:0], view, "d2") == []
    with pytest.raises(UsageError):
        instance_masks(logits, view, "hf")
    with pytest.raises(IncompatibleError):
        instance_masks(logits[:, 1:], view, "d2")


def whole_planes(masks: torch.Tensor, view: View, protocol: str) -> list[tuple[np.ndarray, float]]:
    """What `instance_masks` returns, from planes that are upsampled whole."""
    found = []
    for plane in mask_logits_at_resized(masks, view):
        if protocol == "mmseg1":
            chances = resize_planes(plane[None].sigmoid(), view.original)[0]
            inside = chances > 0.5
        else:
            logits = resize_planes(plane[None], view.original)[0]
            inside, chances = logits > 0, logits.sigmoid()
        values = chances[inside].double()
        found.append((inside.numpy(), float(values.sum() / (len(values) + 1e-6))))
    return found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_masks_are_those_of_whole_planes(data: st.DataObject) -> None:
    """Sizes, factors, padding, second resizes; masks from a few positive cells to many."""
    cells = data.draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    factor = data.draw(st.sampled_from([1, 2, 3, 4]))
    padded = cells[0] * factor, cells[1] * factor
    resized = data.draw(st.integers(1, padded[0])), data.draw(st.integers(1, padded[1]))
    original = data.draw(st.one_of(st.just(resized), st.tuples(st.integers(1, 50), st.integers(1, 50))))
    view, protocol = View(original, resized, padded, cells), data.draw(st.sampled_from(["d2", "mmseg1", "mmseg0"]))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    masks = 3 * torch.randn(4, *cells, generator=random) + data.draw(st.floats(-9, 2))
    for found, (inside, quality) in zip(
        instance_masks(masks, view, protocol), whole_planes(masks, view, protocol), strict=True
    ):
        assert np.array_equal(decode_mask(found.rle), inside)
        assert found.quality == pytest.approx(quality, rel=1e-6)


def test_a_small_mask_is_upsampled_around_its_positive_cells_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View((256, 512), (256, 512), (256, 512), (64, 128))
    masks = torch.full((1, 64, 128), -3.0)
    masks[0, 10:14, 20:26] = 3.0
    sizes, made = [], instance.iter_positive_parts

    def seen(*arguments):
        for part in made(*arguments):
            sizes.append(part.values.shape)
            yield part

    monkeypatch.setattr(instance, "iter_positive_parts", seen)
    (found,) = instance_masks(masks, view, "d2")
    assert np.array_equal(decode_mask(found.rle), whole_planes(masks, view, "d2")[0][0])
    assert sizes == [(4 * 8, 4 * 10)]  # two cells more on each side


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_part_is_encoded_as_its_mask(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    part = np.random.default_rng(data.draw(st.integers(0, 99))).random((rows, columns)) < 0.5
    mask = np.zeros((height, width), bool)
    mask[top : top + rows, left : left + columns] = part
    assert encode_part(part, top, left, (height, width)) == encode_mask(mask)
