"""Views of an image by a generator whose masks are a function of the pixels: what it finds must lie where it lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vitp_pipeline.errors import UsageError
from vitp_pipeline.generators.base import Output
from vitp_pipeline.generators.views import ViewPlan, propose, propose_views, slide
from vitp_pipeline.postprocess.points import center_points, local_maxima_points, max_points, random_points
from vitp_pipeline.postprocess.upsample import mask_logits_at_image
from vitp_pipeline.postprocess.view_average import ScoredView, averaged_label_maps


class ColorGenerator:
    """Two queries: red and green pixels. Pads with gray to multiples of 32, masks at a quarter."""

    classes, protocol, describe = ("red", "green"), "mmseg1", "finds colors"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """The longer side to 160."""
        factor = 160 * scale / max(image.shape[:2])
        size = [round(n * factor) for n in image.shape[:2]]
        planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        return F.interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()

    def forward(self, frames):
        self.sizes.append(len(frames))
        outputs = []
        for frame in frames:
            height, width = frame.shape[:2]
            padded = -(-height // 32) * 32, -(-width // 32) * 32
            planes = torch.full((1, 3, *padded), 100.0)
            planes[0, :, :height, :width] = torch.from_numpy(frame).permute(2, 0, 1)
            planes = F.avg_pool2d(planes, 4)[0]
            masks = (planes[:2] - planes[2:] - 60) / 8
            outputs.append(Output(masks, torch.tensor([[6.0, 0, 0], [0, 6.0, 0]]), padded))
        return outputs


PLANS = {
    "whole": ViewPlan(),
    "flipped": ViewPlan(flip=True),
    "scaled": ViewPlan((0.5, 1.0, 1.75)),
    "windows": ViewPlan(window=(64, 64), stride=(48, 40)),
    "all": ViewPlan((0.75, 1.5), True, (96, 100), (64, 64)),
}


def scene(height: int, width: int, red: tuple[int, int], green: tuple[int, int], radius: int) -> np.ndarray:
    """Gray, with a red and a green square."""
    image = np.full((height, width, 3), 100, np.uint8)
    for (row, col), channel in ((green, 1), (red, 0)):
        image[max(0, row - radius) : row + radius + 1, max(0, col - radius) : col + radius + 1] = 0
        image[max(0, row - radius) : row + radius + 1, max(0, col - radius) : col + radius + 1, channel] = 255
    return image


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_every_view_finds_the_same_object(name: str, data: st.DataObject) -> None:
    """Every policy's point lies on the object, in the frame of the upright original, in every view that shows it."""
    height, width = data.draw(st.sampled_from([(200, 320), (90, 60), (321, 239)]))
    place = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    red, green, radius = data.draw(place), data.draw(place), max(height, width) // 20
    image = scene(height, width, red, green, radius)
    is_red = image[..., 0] > image[..., 2]
    found = list(propose_views(ColorGenerator(), image, PLANS[name]))
    shown = 0
    for view in found:
        logits = mask_logits_at_image(view.mask_logits, view.view)[0].numpy()
        assert (logits > 0)[~is_red].mean() < 0.02  # a rim of rounding
        if (logits > 0).sum() < is_red.sum() / 3:
            continue
        shown += 1
        masks, protocol = view.mask_logits[:1], "mmseg1"
        points = [max_points(masks, view.view, protocol), max_points(masks, view.view, protocol, "mask")]
        points += [center_points(masks, view.view, protocol), local_maxima_points(masks, view.view, protocol, 2)[:, 0]]
        points += [random_points(masks, view.view, protocol, "id")]
        rim = radius // 2 + 2
        for row, col in np.concatenate(points):
            assert is_red[max(0, row - rim) : row + rim + 1, max(0, col - rim) : col + rim + 1].any()
            assert abs(row - red[0]) <= radius + rim and abs(col - red[1]) <= radius + rim
    if 2 * radius < min(red[0], red[1], height - red[0], width - red[1]) and np.abs(np.subtract(red, green)).max() > 30:
        assert shown >= max(1, len(PLANS[name].scales))  # each frame shows it to some window


@pytest.mark.parametrize("protocol", ["mmseg0", "mmseg1", "d2", "mmdet"])
@pytest.mark.parametrize("name", PLANS)
def test_the_average_map_shows_the_scene(name: str, protocol: str) -> None:
    image = scene(200, 320, (60, 80), (120, 250), 30)
    truth = np.where(image[..., 0] > image[..., 1], 0, np.where(image[..., 1] > image[..., 0], 1, 2))
    views = [
        ScoredView(v.mask_logits, v.class_logits.softmax(1)[None, :, :-1], v.view)
        for v in propose_views(ColorGenerator(), image, PLANS[name])
    ]
    labels = averaged_label_maps(views, protocol)[0]
    objects = truth < 2
    assert (labels == truth)[objects].mean() > 0.99


def test_views_come_in_order_and_cover_the_frame() -> None:
    generator, image = ColorGenerator(), scene(200, 320, (60, 80), (120, 250), 30)
    plan = PLANS["all"]
    views = [v.view for v in propose_views(generator, image, plan, batch_size=5)]
    expected = []
    for size in ((75, 120), (150, 240)):
        assert generator.resize(image, size[0] / 100).shape[:2] == size
        for flip in (False, True):
            expected += [(size, flip, w) for w in slide(size, (96, 100), (64, 64))]
    assert [(v.resized, v.flip, v.seen) for v in views] == expected
    assert generator.sizes == [5] * (len(views) // 5) + ([len(views) % 5] if len(views) % 5 else [])
    one = list(propose_views(generator, image, plan))
    assert [v.view for v in one] == views
    small = list(propose_views(generator, image, ViewPlan(window=(160, 160), stride=(80, 80))))
    assert len(small) == 1 and small[0].view.whole  # one window is no window
    assert small[0].view == propose(generator, [image])[0].view


def test_windows_of_cityscapes() -> None:
    """Facts §3.2.5: 1024×1024 every 512 columns of a 1024×2048 image are three."""
    found = slide((1024, 2048), (1024, 1024), (512, 512))
    assert found == [(0, 0, 1024, 1024), (0, 512, 1024, 1024), (0, 1024, 1024, 1024)]
    assert slide((700, 1100), (512, 512), (341, 341))[-1] == (188, 588, 512, 512)
    assert slide((100, 90), (512, 512), (341, 341)) == [(0, 0, 100, 90)]


@pytest.mark.parametrize(
    "faulty",
    [
        {"scales": ()},
        {"scales": (1.0, 0.0)},
        {"window": (10, 10)},
        {"window": (10, 10), "stride": (11, 5)},
        {"window": (10, 10), "stride": (0, 5)},
    ],
)
def test_plans_that_cannot_be(faulty: dict) -> None:
    with pytest.raises(UsageError):
        ViewPlan(**faulty)
