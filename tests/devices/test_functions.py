"""Tensor functions of points, mask storage, fusion and maps on a pretended GPU: no mixed devices, the CPU's results.

On a CPU many maps are made by other code (bounds of blocks), so this compares two ways as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.devices.pretend import DeviceMismatchError, PretendedTensor, on_both, pretended_gpu
from vitp_pipeline.artifacts.mask_codec import PRESETS, MaskCodec, store_masks
from vitp_pipeline.config.choices import FORMULAS, PROTOCOLS
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess import points
from vitp_pipeline.postprocess.certainty import certain_map
from vitp_pipeline.postprocess.fusion import fuse, probs_of_labels
from vitp_pipeline.postprocess.instance import best_pairs, instance_masks
from vitp_pipeline.postprocess.mask_labels import majority_label
from vitp_pipeline.postprocess.mask_quality import mask_quality
from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map
from vitp_pipeline.postprocess.semantic import semantic_label_maps, semantic_scores
from vitp_pipeline.postprocess.upsample import source_reach
from vitp_pipeline.postprocess.view_average import ScoredView, averaged_label_maps

QUERIES, CLASSES = 6, 4
WHOLE = View((60, 90), (40, 60), (64, 64), (16, 16))
VIEWS = {
    "whole": WHOLE,
    "unscaled": View((64, 64), (64, 64), (64, 64), (16, 16)),
    "flipped": View((60, 90), (40, 60), (64, 64), (16, 16), flip=True),
    "window": View((60, 90), (40, 60), (32, 32), (8, 8), window=(4, 10, 32, 32)),
}


def draw(*shape: int, seed: int = 0, loud: float = 4.0) -> Tensor:
    return loud * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks_of(view: View, seed: int = 0) -> Tensor:
    """(Q, h, w) smooth logits; the last mask is empty."""
    smooth = F.interpolate(draw(1, QUERIES, 5, 5, seed=seed), size=view.mask, mode="bicubic")[0]
    smooth[-1] = -1 - smooth[-1].abs()
    return smooth


def same(here: Any, there: Any, rounding: float = 1e-5) -> None:
    """Equal integers, numbers equal to rounding."""
    if isinstance(here, Tensor):
        torch.testing.assert_close(there, here, atol=rounding, rtol=rounding)
    elif isinstance(here, np.ndarray) and here.dtype.kind in "iub":
        assert there.dtype == here.dtype and np.array_equal(there, here)
    elif isinstance(here, np.ndarray | float):
        np.testing.assert_allclose(there, here, atol=rounding, rtol=rounding)
    elif isinstance(here, tuple | list):
        assert len(there) == len(here)
        for one, other in zip(here, there, strict=True):
            same(one, other, rounding)
    else:
        assert there == here


POINTS: dict[str, Callable[[Tensor, View], np.ndarray]] = {
    "max": lambda masks, view: points.max_points(masks, view, "d2"),
    "max of the mask": lambda masks, view: points.max_points(masks, view, "d2", "mask"),
    "center": lambda masks, view: points.center_points(masks, view, "d2"),
    "random": lambda masks, view: points.random_points(masks, view, "d2", "image"),
    "multi": lambda masks, view: points.multi_points(masks, view, "d2", "image", 3),
    "local maxima": lambda masks, view: points.local_maxima_points(masks, view, "d2", 3),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("policy", POINTS)
def test_points(policy: str, view: str) -> None:
    same(*on_both(POINTS[policy], masks_of(VIEWS[view]), VIEWS[view]))


def test_points_of_plateaus() -> None:
    """Masks with many cells that could hold the maximum."""
    masks = masks_of(WHOLE).clamp(max=1.0)
    same(*on_both(POINTS["max"], masks, WHOLE))
    same(*on_both(POINTS["local maxima"], masks, WHOLE))


@pytest.mark.parametrize("preset", PRESETS)
def test_mask_storage(preset: str) -> None:
    objectness = np.linspace(0.0, 1.0, QUERIES)
    codec = MaskCodec(**PRESETS[preset])
    same(*(astuple(stored) for stored in on_both(store_masks, masks_of(WHOLE), objectness, codec, source_reach(WHOLE))))


@pytest.mark.parametrize("formula", sorted(FORMULAS))
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_fusion(formula: str, alpha: float) -> None:
    same(*on_both(fuse, draw(QUERIES, CLASSES + 1), draw(QUERIES, CLASSES, seed=1), alpha, formula))


def test_probabilities_of_labels() -> None:
    labels = np.array([0, 1, -1, 3, 2, 0])
    same(*on_both(probs_of_labels, draw(QUERIES, CLASSES + 1), labels))
    same(*on_both(probs_of_labels, draw(QUERIES, CLASSES + 1), torch.from_numpy(labels), False))


def probabilities(count: int = 2) -> Tensor:
    """(A, Q, K + 1)."""
    return draw(count, QUERIES, CLASSES + 1, seed=2).softmax(-1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("view", ["whole", "unscaled"])
def test_semantic_maps(view: str, protocol: str) -> None:
    given = (masks_of(VIEWS[view]), probabilities()[..., :-1], VIEWS[view], protocol)
    same(*on_both(semantic_scores, *given))
    same(*on_both(semantic_label_maps, *given))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_maps_of_several_views(protocol: str) -> None:
    size = (60, 90), (40, 60), (40, 40), (10, 10)
    windows = [View(*size, (0, left, 40, 40), flip) for flip in (False, True) for left in (0, 20)]
    for views in ([WHOLE, VIEWS["flipped"]], windows):

        def scored(masks: list[Tensor], probs: Tensor, views: list[View] = views) -> np.ndarray:
            each = [ScoredView(m, probs, v) for m, v in zip(masks, views, strict=True)]
            return averaged_label_maps(each, protocol)

        same(*on_both(scored, [masks_of(v, seed) for seed, v in enumerate(views)], probabilities()[..., :-1]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pixels_that_compression_cannot_change(protocol: str) -> None:
    stored = store_masks(masks_of(WHOLE), np.ones(QUERIES), MaskCodec(**PRESETS["bounded"]), source_reach(WHOLE))
    kept = torch.from_numpy(stored.kept).long()
    given = (torch.from_numpy(stored.masks), probabilities()[0, :, :-1], kept, WHOLE, protocol, stored.loss)
    same(*on_both(certain_map, *given))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rule", [PanopticRule("d2", 0.2, 0.5), PanopticRule("mmdet", 0.2, 0.5)], ids=["d2", "mmdet"])
def test_panoptic_maps(rule: PanopticRule, protocol: str) -> None:
    probs, things = probabilities()[0], np.array([True, False, True, False])
    given = (masks_of(WHOLE), probs[:, :-1], probs[:, -1], WHOLE, protocol, rule, things)
    here, there = on_both(panoptic_map, *given)
    assert here[1]
    same(here, there)
    same(*on_both(panoptic_map, *given, quality=torch.linspace(0.5, 1, QUERIES)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_instances(protocol: str) -> None:
    here, there = on_both(instance_masks, masks_of(WHOLE), WHOLE, protocol)
    assert [mask.rle for mask in there] == [mask.rle for mask in here]
    same([mask.quality for mask in here], [mask.quality for mask in there])
    same(*on_both(mask_quality, masks_of(WHOLE), WHOLE, protocol))
    pairs = on_both(partial(best_pairs, things=np.ones(CLASSES, bool), limit=5), probabilities()[0, :, :-1])
    same(*(astuple(pair) for pair in pairs))


def test_majority_labels() -> None:
    truth = np.random.default_rng(0).integers(-1, CLASSES, WHOLE.original).astype(np.int16)
    same(*on_both(majority_label, masks_of(WHOLE), WHOLE, truth))


# ---- the pretended GPU itself ---------------------------------------------------------------------------------------


def test_a_tensor_of_the_cpu_among_those_of_the_gpu_is_an_error() -> None:
    with pretended_gpu() as device:
        a = torch.arange(6.0, device=device).view(2, 3)
        assert isinstance(a, PretendedTensor) and a.is_cuda and a.tolist() == [[0, 1, 2], [3, 4, 5]]
        for mixed in (lambda b: a + b, lambda b: torch.cat([a, b]), lambda b: a.add_(b), lambda b: b[a.long()]):
            with pytest.raises(DeviceMismatchError):
                mixed(torch.ones(2, 3))
        with pytest.raises(RuntimeError):
            a.numpy()
        # as a GPU takes them: numbers, indices, copies
        assert (a + torch.tensor(1.0))[torch.tensor([1])].tolist() == [[4, 5, 6]]
        a.copy_(torch.ones(2, 3))
        assert a.cpu().numpy().sum() == 6 and not isinstance(a.cpu(), PretendedTensor)
    assert not torch.cuda.is_available() or torch.zeros(1, device="cuda").is_cuda


def test_a_function_that_forgets_the_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of max points fails where indices are applied to what stayed on the CPU."""
    monkeypatch.setattr(points, "_max_at_mask", lambda cells, view: (cells + torch.ones(1, 16, 16)).numpy())
    with pytest.raises(DeviceMismatchError):
        on_both(POINTS["max of the mask"], masks_of(WHOLE), WHOLE)
