"""Sizes against values of the authors' code, and a loop that follows their words."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitp_pipeline.generators.frame_size import resize_bilinear, shortest_edge_size, size_around, size_inside


@pytest.mark.parametrize(
    ("size", "edges", "expected"),
    [
        ((512, 683), (640, 2560), (640, 854)),  # transformers' processor: 853
        ((333, 500), (640, 2560), (640, 961)),  # there: 960
        ((683, 512), (640, 2560), (854, 640)),
        ((480, 640), (800, 1333), (800, 1067)),
        ((427, 640), (800, 1333), (800, 1199)),
        ((300, 900), (800, 1333), (444, 1333)),  # the longer edge decides
        ((1024, 2048), (1024, 2048), (1024, 2048)),
        ((100, 100), (640, 2560), (640, 640)),
    ],
)
def test_shortest_edge(size: tuple[int, int], edges: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shortest_edge_size(size, *edges) == expected


@pytest.mark.parametrize("seed", range(3))
def test_shortest_edge_keeps_the_limits_and_the_ratio(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(200):
        size = tuple(int(n) for n in rng.integers(50, 3000, 2))
        shortest = int(rng.integers(100, 1000))
        longest = int(rng.integers(shortest, 3 * shortest))
        new = shortest_edge_size(size, shortest, longest)
        assert max(new) <= longest and min(new) <= shortest
        assert min(new) == shortest or max(new) == longest
        factor = max(new) / max(size)
        assert all(abs(n - s * factor) <= 0.5 + 0.5 * s / max(size) for n, s in zip(new, size, strict=True))


def test_squares() -> None:
    assert size_inside((480, 640), 640) == (480, 640)
    assert size_inside((427, 640), 512) == (342, 512)
    assert size_around((427, 640), 512) == (512, 767)
    assert size_around((640, 427), 512) == (767, 512)


def test_resize_is_pillows() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((33, 22), Image.BILINEAR))
    assert np.array_equal(resize_bilinear(image, (22, 33)), expected)
    assert resize_bilinear(image, (40, 60)) is image
