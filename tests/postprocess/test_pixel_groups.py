"""Groups of pixels against the distinct columns of dense planes, and maps of both."""

from __future__ import annotations

import numpy as np
import pytest

from vitp_pipeline.artifacts.mask_codec import PRESETS
from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.inference.predictor import plain_spec
from vitp_pipeline.interop.pseudo_logits import ForeignMasks, logits_of_scores
from vitp_pipeline.postprocess.groups.pixel_groups import MaskPart, group_pixels
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.stages.convert_masks import convert_masks

LEVELS = np.array([-8.0, -10.0, 10.0], np.float32)


def drawn(rng: np.random.Generator, size: tuple[int, int]) -> MaskPart:
    top, left = (int(rng.integers(side)) for side in size)
    shape = [int(rng.integers(1, side - start + 1)) for side, start in zip(size, (top, left), strict=True)]
    return MaskPart(top, left, rng.integers(0, 3, shape).astype(np.uint8), LEVELS)


def test_groups_are_the_distinct_columns_of_the_masks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        size = int(rng.integers(1, 12)), int(rng.integers(1, 12))
        masks = [drawn(rng, size) for _ in range(rng.integers(1, 8))]
        planes = np.full((len(masks), *size), LEVELS[0])
        for plane, mask in zip(planes, masks, strict=True):
            for row, codes in enumerate(mask.codes):
                for column, code in enumerate(codes):
                    plane[mask.top + row, mask.left + column] = LEVELS[code]
        groups, values = group_pixels(iter(masks), size)
        assert np.array_equal(groups.spread(values), planes)
        assert np.array_equal(np.stack([mask.plane(size) for mask in masks]), planes)
        assert np.array_equal(groups.sizes, np.bincount(groups.index.ravel(), minlength=len(groups.sizes)))
        assert groups.sizes.all() and len(groups.sizes) == len(np.unique(planes.reshape(len(masks), -1), axis=1).T)
        assert (
            groups.index.dtype == np.int32 and values.dtype == np.float32 and groups.view.mask == (1, values.shape[2])
        )


def test_without_masks_there_is_one_group() -> None:
    groups, values = group_pixels([], (3, 5))
    assert values.shape == (0, 1, 1) and groups.sizes.tolist() == [15] and not groups.index.any()


@pytest.mark.parametrize("rule", ["d2", "mmdet"])
@pytest.mark.parametrize("overlap", ["sum", "smallest-on-top", "highest-score"])
@pytest.mark.parametrize("codec", ["bounded", "lossless"])
def test_maps_are_those_of_dense_masks(codec: str, overlap: str, rule: str) -> None:
    """Binary masks as `convert_masks` makes them, by groups and as (M, H, W) floats."""
    rng, size, classes = np.random.default_rng(1), (23, 31), 4
    spec = plain_spec([f"c{k}" for k in range(classes)], "test")
    proposals = ProposalSettings("", **PRESETS[codec])
    for mask_quality in (False, True):
        measures = EvaluateSettings(
            object_threshold=0.2,
            overlap_threshold=0.5,
            panoptic_rule=rule,
            mask_quality=mask_quality,
            detections=9,
            overlap=overlap,
        )
        segmenter = Segmenter(measures, np.array([True, False, True, False]))
        found = 0
        for _ in range(12):
            masks = [blob(rng, size) for _ in range(7)]
            logits = logits_of_scores(rng.integers(0, classes, 7), rng.uniform(0.3, 1, 7), classes, 0.5)
            foreign = ForeignMasks(logits, [encode_mask(mask) for mask in masks], size)
            entry, class_logits, binary = convert_masks(foreign, size, proposals, spec, "a", "a")
            groups, values = group_pixels(binary.parts(), size)
            points = rng.normal(0, 2, (7, classes)).astype(np.float32)
            grouped = ProposalRecord(**vars(entry), class_logits=class_logits, masks=values)
            dense = ProposalRecord(**vars(entry), class_logits=class_logits, masks=binary.dense)
            one = segmenter.score(grouped, points, (0.0, 0.4, 1.0), groups=groups)
            other = segmenter.score(dense, points, (0.0, 0.4, 1.0))
            assert np.array_equal(segmenter.semantic([one]), segmenter.semantic([other]))
            for (ids, segments), (expected, theirs) in zip(
                segmenter.panoptic(one), segmenter.panoptic(other), strict=True
            ):
                assert np.array_equal(ids, expected) and segments == theirs
                found += len(segments)
            ours, theirs = segmenter.instances(one), segmenter.instances(other)
            for variant in range(3):
                assert ours.rles(variant) == theirs.rles(variant)
                assert np.allclose(ours.variants[variant].scores, theirs.variants[variant].scores, rtol=1e-6)
        assert found > 20


def blob(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    rows, columns = np.indices(size)
    center, radius = rng.uniform(0, size), rng.uniform(1, 12)
    return np.asarray((rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2)
