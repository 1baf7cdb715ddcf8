from __future__ import annotations

import numpy as np
import pytest
import torch

from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.postprocess.mask_quality import mask_quality
from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map
from vitp_pipeline.postprocess.upsample import iter_mask_probabilities

VIEW = View((11, 14), (24, 30), (32, 32), (8, 8))
SAME = View((8, 8), (8, 8), (8, 8), (8, 8))
THINGS = np.array([True, True, False])


@pytest.mark.parametrize("protocol", ["d2", "mmseg1", "mmdet"])
def test_quality_against_loops(protocol: str) -> None:
    masks = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    masks[4] = -masks[4].abs()
    found = mask_quality(masks, VIEW, protocol)
    assert found.shape == (6,) and found.dtype == torch.float32
    for query, plane in enumerate(iter_mask_probabilities(masks, VIEW, protocol)):
        inside = [float(v) for v in plane.flatten() if v > 0.5]
        assert float(found[query]) == pytest.approx(sum(inside) / len(inside) if inside else 0.0, abs=1e-6)
    assert found[4] == 0 and mask_quality(masks[:0], VIEW, protocol).shape == (0,)


def example(sure: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    masks = torch.nn.functional.interpolate(torch.randn(1, 9, 3, 3, generator=generator), (8, 8), mode="bicubic")[0]
    probs = (torch.randn(9, 4, generator=generator) * 3).softmax(1)
    return masks.sign() * 100 if sure else masks * 3, probs


@pytest.mark.parametrize("rule", [PanopticRule("d2", 0.3, 0.2), PanopticRule("mmdet", 0.3, 0.2)])
def test_masks_of_quality_one_change_nothing(rule: PanopticRule) -> None:
    masks, probs = example(sure=True)
    quality = mask_quality(masks, SAME, "d2")
    assert (quality == 1).all()
    plain = panoptic_map(masks, probs[:, :3], probs[:, 3], SAME, "d2", rule, THINGS)
    ranked = panoptic_map(masks, probs[:, :3], probs[:, 3], SAME, "d2", rule, THINGS, quality)
    assert (plain[0] == ranked[0]).all() and plain[1] == ranked[1] and plain[1]


def test_quality_ranks_but_does_not_choose_who_takes_part() -> None:
    masks, probs = example(sure=False)
    masks[1], masks[2] = 2.0, 1.0  # two masks of the whole image
    probs[:] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    probs[1], probs[2] = torch.tensor([0.6, 0, 0, 0.4]), torch.tensor([0, 0.7, 0, 0.3])
    rule = PanopticRule("d2", 0.5, 0.0)
    without = panoptic_map(masks, probs[:, :3], probs[:, 3], SAME, "d2", rule, THINGS)
    # 0.6·σ(2) = 0.528 > 0.7·σ(1) = 0.512; with a worse quality of the first the second wins
    assert [(s.category, round(s.score, 3)) for s in without[1]] == [(0, 0.6)]
    quality = torch.ones(9)
    quality[1] = 0.5  # 0.3 is below the threshold: it takes part all the same, but loses
    ranked = panoptic_map(masks, probs[:, :3], probs[:, 3], SAME, "d2", rule, THINGS, quality)
    assert [(s.category, round(s.score, 3)) for s in ranked[1]] == [(1, 0.7)]
    probs[2] = torch.tensor([0, 0.0, 0, 1.0])
    alone = panoptic_map(masks, probs[:, :3], probs[:, 3], SAME, "d2", rule, THINGS, quality)
    assert [(s.category, round(s.score, 3)) for s in alone[1]] == [(0, 0.3)] and (alone[0] == 1).all()


def test_shapes() -> None:
    masks, probs = example(sure=False)
    with pytest.raises(IncompatibleError, match="quality"):
        panoptic_map(masks, probs[:, :3], probs[:, 3], SAME, "d2", PanopticRule(), THINGS, torch.ones(8))
