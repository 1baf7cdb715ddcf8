from __future__ import annotations

import numpy as np
import pytest

from vitp_pipeline.inference.overlay import Region, draw_regions

GRAY = (128, 128, 128)


def halves(height: int, width: int, things: tuple[bool | None, bool | None] = (True, True)) -> list[Region]:
    """The left and the right half, of one class."""
    left = np.zeros((height, width), bool)
    left[:, : width // 2] = True
    return [Region(mask, GRAY, "cat", "cat", thing) for mask, thing in zip((left, ~left), things, strict=True)]


@pytest.mark.parametrize("size", [(48, 64), (150, 200), (1024, 2048)])
def test_the_image_is_on_top_and_the_legend_below(size: tuple[int, int]) -> None:
    height, width = size
    sheet = draw_regions(np.zeros((height, width, 3), np.uint8), halves(*size))
    factor = sheet.width // width
    assert sheet.width == factor * width and min(sheet.width, factor * height) >= min(480, *size)
    legend = np.asarray(sheet)[factor * height :]
    assert 12 < len(legend) < 0.1 * sheet.height
    assert (legend == GRAY).all(-1).any()  # the swatch, in the color of the manifest
    assert (legend.max(-1) < 60).any()  # and writing


def test_touching_things_of_a_class_differ() -> None:
    picture = np.asarray(draw_regions(np.zeros((480, 640, 3), np.uint8), halves(480, 640)))
    assert abs(int(picture[5, 5, 0]) - int(picture[5, 635, 0])) > 10
    apart = halves(480, 640)
    gap = [Region(r.mask & (np.abs(np.arange(640) - 320) > 20), r.color, r.name, r.label, True) for r in apart]
    picture = np.asarray(draw_regions(np.zeros((480, 640, 3), np.uint8), gap))
    assert (picture[5, 5] == picture[5, 635]).all()


def test_things_have_white_borders_and_stuff_dark_ones() -> None:
    image = np.full((480, 640, 3), 128, np.uint8)
    for things, color in (((True, True), 255), ((True, False), 255), ((False, False), 24), ((None, None), 255)):
        assert np.asarray(draw_regions(image, halves(480, 640, things)))[5, 319, 0] == color


def test_names_do_not_lie_on_each_other() -> None:
    # regions so thin that their names would
    masks = [np.zeros((480, 640), bool) for _ in range(20)]
    for number, mask in enumerate(masks):
        mask[4 * number : 4 * number + 4] = True
    image = np.full((480, 640, 3), 128, np.uint8)
    picture = np.asarray(draw_regions(image, [Region(m, GRAY, f"name {n}", "c", True) for n, m in enumerate(masks)]))
    tags = (picture[:480] == (24, 24, 28)).all(-1)
    assert 0 < tags.any(1).sum() < 480 and 1 <= tags.sum() / (16 * 40) < 20


def test_nothing_to_draw() -> None:
    image = np.full((480, 640, 3), 7, np.uint8)
    assert (np.asarray(draw_regions(image, [])) == image).all()
