from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vitp_pipeline.datasets import IGNORE, regions
from vitp_pipeline.datasets.regions import boxes_of_regions, coarse_regions, connected_regions, deepest_pixel


def blobs(seed: int, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    """Smooth random labels in −1..3."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 3)
    return (np.digitize(noise, np.quantile(noise, [0.2, 0.4, 0.6, 0.8])) - 1).astype(np.int16)


def flooded(labels: np.ndarray) -> list[tuple[int, set[tuple[int, int]]]]:
    """(class, pixels) of every connected piece, by flood fill."""
    left, found = {(int(r), int(c)) for r, c in np.argwhere(labels != IGNORE)}, []
    while left:
        edge = [next(iter(left))]
        k, piece = int(labels[edge[0]]), set()
        while edge:
            at = edge.pop()
            if at in left and labels[at] == k:
                left.remove(at)
                piece.add(at)
                edge += [(at[0] + 1, at[1]), (at[0] - 1, at[1]), (at[0], at[1] + 1), (at[0], at[1] - 1)]
        found.append((k, piece))
    return found


def test_connected_regions_are_those_of_a_flood_fill() -> None:
    for seed in range(4):
        labels = blobs(seed)
        numbers, classes = connected_regions(labels, least=0.01)
        expected = {(k, frozenset(p)) for k, p in flooded(labels) if len(p) >= 0.01 * labels.size}
        found = {
            (int(k), frozenset(map(tuple, np.argwhere(numbers == n).tolist()))) for n, k in enumerate(classes.tolist())
        }
        assert found == expected and len(classes) == len(expected) and (np.diff(classes) >= 0).all()
        assert ((numbers == IGNORE) | (numbers < len(classes))).all()
        for edges, n in zip(boxes_of_regions(numbers, len(classes)), range(len(classes)), strict=True):
            rows, cols = np.nonzero(numbers == n)
            assert edges.tolist() == [rows.min(), cols.min(), rows.max() + 1, cols.max() + 1]


def test_nothing_labeled_has_no_region() -> None:
    numbers, classes = connected_regions(np.full((5, 6), IGNORE, np.int16))
    assert (numbers == IGNORE).all() and len(classes) == 0 and boxes_of_regions(numbers, 0).shape == (0, 4)


def test_coarse_regions_keep_what_lies_deep() -> None:
    """Against a slow search for the nearest pixel of another region."""
    numbers = blobs(5)
    previous = numbers
    for erosion in (0.0, 0.2, 0.5, 0.99):
        coarse = coarse_regions(numbers, erosion)
        kept = coarse != IGNORE
        assert coarse.dtype == numbers.dtype and (coarse[kept] == numbers[kept]).all()
        assert not (kept & (previous == IGNORE)).any()  # the more erosion, the less stays
        assert set(np.unique(coarse)) == set(np.unique(numbers))  # and no region vanishes
        previous = coarse
        for n in np.unique(numbers[numbers != IGNORE]):
            inside, outside = np.argwhere(numbers == n), np.argwhere(numbers != n)
            depth = np.sqrt(((inside[:, None] - outside[None]) ** 2).sum(2).min(1))
            stays = kept[inside[:, 0], inside[:, 1]]
            # outlines are of pixels here, not of the lines between them: at most a pixel's difference
            assert depth[stays].min() > erosion * depth.max() - 1.5
            assert stays[depth > erosion * (depth.max() + 1) + 1].all()
    assert np.array_equal(coarse_regions(numbers, 0.0), numbers)


def test_the_border_of_the_image_is_no_outline() -> None:
    numbers = np.zeros((20, 30), np.int16)
    assert np.array_equal(coarse_regions(numbers, 0.9), numbers)
    numbers[:, 20:] = 1
    coarse = coarse_regions(numbers, 0.5)
    assert (coarse[:, 0] == 0).all() and (coarse[:, -1] == 1).all() and (coarse[:, 16:23] == IGNORE).all()


def shapes(kind: str, size: tuple[int, int], seed: int) -> np.ndarray:
    """(h, w) bool."""
    random = np.random.default_rng(seed)
    rows, cols = np.mgrid[: size[0], : size[1]]
    away = np.hypot(rows - random.integers(size[0]), cols - random.integers(size[1]))
    made = {
        "noise": random.random(size) < random.random(),
        "disk": away < random.integers(1, 60),
        "rings": away % 12 < random.integers(2, 11),
        "all but one": away > 0,
        "all": away >= 0,
        "stripes": (rows + 2 * cols) % 17 < random.integers(1, 17),
        "blobs": ndimage.gaussian_filter(random.normal(size=size), 3) > 0,
    }
    return made[kind]


KINDS = ("noise", "disk", "rings", "all but one", "all", "stripes", "blobs")


def deepest_of_all(inside: np.ndarray) -> tuple[int, int]:
    """By a transform of the whole."""
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(col)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(0, 2**32 - 1))
def test_the_deepest_pixel_by_blocks_is_that_of_a_transform(kind: str, size: tuple[int, int], seed: int) -> None:
    """The first of equal ones, too."""
    inside = shapes(kind, size, seed)
    if not inside.any():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "_LARGE", 0)
        assert deepest_pixel(inside) == deepest_of_all(inside)
    assert deepest_pixel(inside) == deepest_of_all(inside)


@pytest.mark.parametrize("kind", KINDS)
def test_the_deepest_pixel_of_a_large_region(kind: str) -> None:
    inside = shapes(kind, (430, 610), 7)
    assert inside.size > regions._LARGE and deepest_pixel(inside) == deepest_of_all(inside)
