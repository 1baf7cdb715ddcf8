"""Binary masks are converted inside their bounding boxes; what comes out is as if they had been made dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import making
from vitp_pipeline.artifacts.mask_codec import PRESETS, store_masks
from vitp_pipeline.config.generate_proposals import MasksOfView
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.decoding.rle import decode_box, decode_mask, encode_mask
from vitp_pipeline.geometry import View
from vitp_pipeline.interop.pseudo_logits import ForeignMasks, logits_of_binary, logits_of_objectness
from vitp_pipeline.postprocess.point_policies import choose_points
from vitp_pipeline.postprocess.upsample import source_reach
from vitp_pipeline.stages.convert_masks import PROTOCOL, convert_masks

POLICIES = ("max", "center", "random", "multi")


def drawn(seed: int, size: tuple[int, int], count: int = 12) -> np.ndarray:
    """(Q, H, W) bool: rectangles, ellipses, noise, single pixels, all and nothing; at the edges, too."""
    random = np.random.default_rng(seed)
    rows, cols = np.mgrid[: size[0], : size[1]]
    masks = []
    for number in range(count):
        top, left = random.integers(size)
        height, width = random.integers(1, size)
        box = (rows >= top) & (rows < top + height) & (cols >= left) & (cols < left + width)
        ellipse = ((rows - top) / height) ** 2 + ((cols - left) / width) ** 2 < 0.3
        kinds = [
            box,
            ellipse,
            box & (random.random(size) < 0.4),
            (rows == top) & (cols == left),
            box | True,
            box & False,
        ]
        masks.append(kinds[number % len(kinds)])
    return np.stack(masks)


@pytest.mark.parametrize("preset", [*PRESETS, "float16"])
@pytest.mark.parametrize("resolution", ["the image's", "half"])
def test_as_dense_masks(preset: str, resolution: str) -> None:
    size = (47, 61)
    masks = drawn(len(preset), size)
    original = size if resolution == "the image's" else (94, 122)
    keys: dict[str, Any] = {"mask_dtype": "float16", "masks": "lossless"} if preset == "float16" else {"masks": preset}
    chosen = ProposalSettings(config="x", points=POLICIES, multi=5, seed=3, **keys)
    scores = np.linspace(1e-4, 1, len(masks))
    found = ForeignMasks(logits_of_objectness(scores, 3), [encode_mask(mask) for mask in masks], size)
    made = convert_masks(found, original, chosen, making.semantic_spec(), "a", "a.png")

    view = View(original, original, original, size)
    logits = torch.from_numpy(logits_of_binary(masks))
    points = choose_points(MasksOfView(logits, view, PROTOCOL, "a", binary=True), chosen)
    assert {name: own.tolist() for name, own in made.entry.points.items()} == {n: p.tolist() for n, p in points.items()}
    stored = store_masks(logits, scores, chosen.codec, source_reach(view))
    assert np.array_equal(made.entry.kept, stored.kept) and made.entry.loss == stored.loss
    planes = [plane.copy() for plane in made.stored.each]
    assert len(planes) == len(stored.masks) and planes[0].dtype == stored.masks.dtype
    assert all(np.array_equal(own, plane) for own, plane in zip(stored.masks, planes, strict=True))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=14), st.booleans())
def test_a_mask_in_its_box(height: int, counts: list[int], text: bool) -> None:
    """Of any run lengths, those of no pixel too."""
    from pycocotools import mask as coco

    width = max(1, -(-sum(counts) // height))
    counts = [*counts, height * width - sum(counts)]
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    rle["counts"] = rle["counts"].decode() if text else rle["counts"]
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    whole = values.reshape(width, height).T
    top, left, inside = decode_box(rle)
    rows, cols = np.nonzero(whole)
    if not len(rows):
        assert (top, left, inside.shape) == (0, 0, (0, 0))
        return
    box = np.s_[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    assert (top, left) == (rows.min(), cols.min()) and np.array_equal(inside, whole[box])
    assert np.array_equal(decode_mask(encode_mask(whole)), whole)
