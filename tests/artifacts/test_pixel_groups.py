"""Groups of pixels against the distinct columns of dense planes, and maps of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitp_pipeline.artifacts.mask_codec import PRESETS
from vitp_pipeline.artifacts.pixel_groups import MOST_LEVELS, ManyLevels, MaskPart, group_pixels, part_of
from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View
from vitp_pipeline.inference.predictor import plain_spec
from vitp_pipeline.interop.pseudo_logits import ForeignMasks, logits_of_scores
from vitp_pipeline.postprocess.mask_labels import majority_label, majority_label_of_groups
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.report.mask_statistics import mask_areas
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


def test_parts_of_planes_give_the_planes_back() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        size = int(rng.integers(1, 12)), int(rng.integers(1, 12))
        plane = drawn(rng, size).plane(size)
        plane = plane[::-1] if rng.random() < 0.5 else np.where(plane == rng.choice(LEVELS), LEVELS[0], plane)
        part = part_of(plane)
        assert np.array_equal(part.plane(size), plane) and part.codes.dtype == np.uint8
        away = np.argwhere(plane != plane.min())
        corners = [*away.min(0), *away.max(0) + 1] if len(away) else [0, 0, 0, 0]
        assert [part.top, part.left, part.top + part.codes.shape[0], part.left + part.codes.shape[1]] == corners
        assert len(set(part.levels.tolist())) == len(part.levels) == len(np.unique(plane))


def test_many_values_are_no_levels() -> None:
    few = np.arange(MOST_LEVELS, dtype=np.float32).reshape(2, -1)
    assert np.array_equal(part_of(few).plane(few.shape), few)
    with pytest.raises(ManyLevels):
        part_of(np.arange(MOST_LEVELS + 1, dtype=np.float32)[None])
    with pytest.raises(ManyLevels):
        part_of(np.array([[np.nan, 1]], np.float32))


def test_majority_labels_and_areas_are_those_of_dense_masks() -> None:
    """Nested masks with ties between labels, empty masks, and masks of pixels without a label."""
    rng, found = np.random.default_rng(3), set()
    for number in range(200):
        size = int(rng.integers(1, 14)), int(rng.integers(1, 14))
        view = View(size, size, size, size)
        truth = rng.integers(IGNORE, 3, size).astype(np.int16) if number % 9 else np.full(size, IGNORE, np.int16)
        masks = np.stack([np.where(blob(rng, size), 10, -10) for _ in range(rng.integers(1, 6))]).astype(np.float32)
        groups, values = group_pixels(map(part_of, masks), size)
        expected = []
        for mask in masks:
            inside = [int(k) for k, logit in zip(truth.flat, mask.flat, strict=True) if logit > 0 and k != IGNORE]
            expected.append(min(set(inside), key=lambda k: (-inside.count(k), k)) if inside else IGNORE)
        ours = majority_label_of_groups(values, groups, truth)
        assert ours.tolist() == majority_label(torch.from_numpy(masks), view, truth).tolist() == expected
        assert ours.dtype == np.int64
        assert np.array_equal(mask_areas(values, view, groups), mask_areas(masks, view))
        found |= set(expected)
    assert found == {IGNORE, 0, 1, 2}
    with pytest.raises(IncompatibleError, match="the ground truth is"):
        majority_label_of_groups(values, groups, np.zeros((99, 1), np.int16))


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
            grouped = ProposalRecord(**vars(entry), class_logits=class_logits, masks=values, groups=groups)
            dense = ProposalRecord(**vars(entry), class_logits=class_logits, masks=binary.dense)
            one = segmenter.score(grouped, points, (0.0, 0.4, 1.0))
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
