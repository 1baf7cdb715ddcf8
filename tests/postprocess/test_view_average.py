"""Averages over views, against mmsegmentation's own code and against the descriptions of the others."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitp_pipeline.config.choices import PROTOCOLS
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.generators.views import slide
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.semantic import semantic_label_maps, semantic_scores
from vitp_pipeline.postprocess.view_average import ScoreAverage, ScoredView, averaged_label_maps

ORIGINAL = (23, 31)
Q, K, A = 5, 4, 2
PLANS = {
    "flipped": ([(20, 26)], True, None),
    "scaled": ([(20, 26), (23, 31), (46, 60)], False, None),
    "windows": ([(30, 41)], False, (16, 20)),
    "all": ([(20, 26), (30, 41)], True, (16, 20)),
}


def scored(name: str, seed: int = 0) -> list[ScoredView]:
    """Views of random logits: padded to multiples of 8, masks at a quarter."""
    generator = torch.Generator().manual_seed(seed)
    sizes, flipped, window = PLANS[name]
    views = []
    for size in sizes:
        for flip in (False, True) if flipped else (False,):
            for part in slide(size, window, (10, 12)) if window else [None]:
                seen = part[2:] if part else size
                padded = tuple(-(-n // 8) * 8 for n in seen)
                mask = tuple(n // 4 for n in padded)
                masks = torch.randn(Q, *mask, generator=generator) * 4
                probs = (torch.randn(A, Q, K + 1, generator=generator) * 3).softmax(-1)[..., :-1]
                views.append(ScoredView(masks, probs, View(ORIGINAL, size, padded, mask, part, flip)))
    return views


def frames(views: list[ScoredView]) -> list[list[ScoredView]]:
    """The views, those of a frame together."""
    found: list[list[ScoredView]] = []
    for view in views:
        if view.view.seen[:2] == (0, 0):
            found.append([])
        found[-1].append(view)
    return found


def resize(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(planes[None], size, mode="bilinear")[0]


def window_scores(one: ScoredView, alpha: int, protocol: str) -> torch.Tensor:
    """(K, h, w) in the window or resized image, float64, a loop over the definition."""
    view, masks, probs = one.view, one.mask_logits.double(), one.probs[alpha].double()
    height, width = view.seen[2:]
    if protocol == "mmseg0":
        return resize(torch.einsum("qk,qhw->khw", probs, masks.sigmoid()), view.padded)[:, :height, :width]
    return torch.einsum("qk,qhw->khw", probs, resize(masks, view.padded)[:, :height, :width].sigmoid())


def slow_average(views: list[ScoredView], alpha: int, protocol: str) -> torch.Tensor:
    """(K, H0, W0): the sum over windows over their number; resized; flipped; averaged."""
    maps = []
    for frame in frames(views):
        view = frame[0].view
        if protocol in ("d2", "mmdet") and view.window is None:
            masks = resize(frame[0].mask_logits.double(), view.padded)[:, : view.resized[0], : view.resized[1]]
            masks = resize(masks, ORIGINAL).sigmoid()
            scores = torch.einsum("qk,qhw->khw", frame[0].probs[alpha].double(), masks)
            maps.append(scores.flip(2) if view.flip else scores)
            continue
        total, count = torch.zeros(K, *view.resized, dtype=torch.float64), torch.zeros(view.resized)
        for one in frame:
            top, left, height, width = one.view.seen
            found = window_scores(one, alpha, protocol)
            total += F.pad(found, (left, view.resized[1] - left - width, top, view.resized[0] - top - height))
            count[top : top + height, left : left + width] += 1
        assert (count > 0).all()
        scores = resize(total / count, ORIGINAL)
        maps.append(scores.flip(2) if view.flip else scores)
    if protocol.startswith("mmseg") and len(maps) > 1:
        maps = [scores.softmax(0) for scores in maps]
    return torch.stack(maps).mean(0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", PLANS)
def test_average_against_loops(name: str, protocol: str) -> None:
    views = scored(name)
    expected = torch.stack([slow_average(views, alpha, protocol) for alpha in range(A)])
    for budget in (1, 30_000, 1 << 28):  # a row at a time, some, all
        average = ScoreAverage(protocol, ORIGINAL, budget_bytes=budget)
        for view in views:
            average.add(*view)
        scores, labels = average.scores(), average.labels()
        torch.testing.assert_close(scores.double(), expected, atol=2e-6, rtol=0)
        assert np.array_equal(labels, scores.argmax(1).numpy())
    two_best = scores.topk(2, dim=1).values
    clear = (two_best[:, 0] - two_best[:, 1] > 1e-6).numpy()
    for budget in (1, 60_000, 1 << 28):
        again = averaged_label_maps(views, protocol, budget)
        assert again.dtype == np.int16 and np.array_equal(again[clear], labels[clear])
    assert clear.mean() > 0.99


def mmseg_parts() -> SimpleNamespace:
    importlib.import_module("vitp_pipeline.generators.openmmlab.mmcv_stub").prepare_mmcv()
    return SimpleNamespace(
        head=importlib.import_module("mmseg.models.decode_heads.mask2former_head").Mask2FormerHead,
        segmentor=importlib.import_module("mmseg.models.segmentors.encoder_decoder").EncoderDecoder,
        tta=importlib.import_module("mmseg.models.segmentors.seg_tta").SegTTAModel,
        sample=importlib.import_module("mmseg.structures").SegDataSample,
    )


@pytest.mark.parametrize("name", PLANS)
def test_mmseg1_is_mmsegmentations_own_code(name: str) -> None:
    """Its head, slide inference, post-processing and test-time augmentation, all on the same logits."""
    from mmengine.config import ConfigDict

    mmseg, views, found = mmseg_parts(), scored(name), []
    for frame in frames(views):
        view, waiting = frame[0].view, iter(frame)

        def encode_decode(inputs, metas, waiting=waiting):
            one = next(waiting)
            assert tuple(inputs.shape[2:]) == one.view.seen[2:]
            no_object = 1 - one.probs[0].sum(-1, keepdim=True)
            logits = torch.cat([one.probs[0], no_object], -1).log()
            pad = [{**metas[0], "pad_shape": one.view.padded}]
            scores = mmseg.head.predict(lambda x, samples: ([logits[None]], [one.mask_logits[None]]), None, pad, {})
            return scores[:, :, : one.view.seen[2], : one.view.seen[3]]  # each window is padded on its own

        model = SimpleNamespace(
            test_cfg=ConfigDict(mode="slide", crop_size=PLANS[name][2] or view.resized, stride=(10, 12)),
            out_channels=K,
            encode_decode=encode_decode,
            align_corners=False,
            decode_head=None,
        )
        meta = {"ori_shape": ORIGINAL, "flip": view.flip, "flip_direction": "horizontal", "img_path": ""}
        scores = mmseg.segmentor.slide_inference(model, torch.zeros(1, 3, *view.resized), [dict(meta)])
        assert next(waiting, None) is None  # our windows are mmseg's windows
        found += mmseg.segmentor.postprocess_result(model, scores, [mmseg.sample(metainfo=meta)])
    wrapper = SimpleNamespace(module=SimpleNamespace(out_channels=K))
    ours = averaged_label_maps(views, "mmseg1")[0]
    average = ScoreAverage("mmseg1", ORIGINAL)
    for view in views:
        average.add(*view)
    logits = [sample.seg_logits.data for sample in found]
    theirs = torch.stack([s.softmax(0) for s in logits]).mean(0) if len(found) > 1 else logits[0]
    torch.testing.assert_close(average.scores()[0], theirs, atol=1e-6, rtol=0)
    labels = mmseg.tta.merge_preds(wrapper, [found])[0].pred_sem_seg.data[0].numpy()
    assert np.array_equal(ours, labels)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_whole_view_is_the_plain_map(protocol: str) -> None:
    masks, probs, view = scored("scaled")[0]
    average = ScoreAverage(protocol, ORIGINAL)
    average.add(masks, probs, view)
    torch.testing.assert_close(average.scores(), semantic_scores(masks, probs, view, protocol), atol=2e-6, rtol=0)
    alone = averaged_label_maps([ScoredView(masks, probs, view)], protocol)
    assert np.array_equal(alone, semantic_label_maps(masks, probs, view, protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flipped_view_of_flipped_logits_changes_nothing(protocol: str) -> None:
    """Without padding, flipped masks in a flipped view are the plain view."""
    view = View(ORIGINAL, (24, 32), (24, 32), (6, 8))
    generator = torch.Generator().manual_seed(1)
    masks = torch.randn(Q, 6, 8, generator=generator) * 4
    probs = (torch.randn(A, Q, K, generator=generator) * 3).softmax(-1)
    average = ScoreAverage(protocol, ORIGINAL)
    average.add(masks.flip(-1), probs, replace(view, flip=True))
    torch.testing.assert_close(average.scores(), semantic_scores(masks, probs, view, protocol), atol=2e-6, rtol=0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", PLANS)
def test_where_no_view_has_a_class_nothing_is_predicted(name: str, protocol: str) -> None:
    """Of one α no view has a class, of the other a single view has: that one alone decides."""
    views = [view._replace(probs=torch.zeros_like(view.probs)) for view in scored(name)]
    assert (averaged_label_maps(views, protocol) == IGNORE).all()
    without = [ScoredView(v.mask_logits[:0], v.probs[:, :0], v.view) for v in views]
    assert (averaged_label_maps(without, protocol) == IGNORE).all()
    views[-1].probs[0, :, 2] = 0.5
    labels = averaged_label_maps(views, protocol)
    assert (labels[1] == IGNORE).all() and 2 in labels[0] and IGNORE not in labels[0]


def test_bad_views() -> None:
    views = scored("windows")
    average = ScoreAverage("mmseg1", ORIGINAL)
    with pytest.raises(IncompatibleError, match="top left"):
        average.add(*views[1])
    average.add(*views[0])
    with pytest.raises(IncompatibleError, match="top left"):
        average.add(views[1].mask_logits, views[1].probs, replace(views[1].view, flip=True))
    with pytest.raises(IncompatibleError, match="not of"):
        average.add(views[1].mask_logits, views[1].probs, replace(views[1].view, original=(5, 5)))
    for empty in (ScoreAverage("d2", ORIGINAL).scores, ScoreAverage("d2", ORIGINAL).labels):
        with pytest.raises(IncompatibleError, match="no views"):
            empty()
    with pytest.raises(IncompatibleError, match="no views"):
        averaged_label_maps([], "d2")
