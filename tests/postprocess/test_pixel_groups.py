"""Groups of pixels against the distinct columns of dense planes."""

from __future__ import annotations

import numpy as np

from vitp_pipeline.postprocess.groups.pixel_groups import MaskPart, group_pixels

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
