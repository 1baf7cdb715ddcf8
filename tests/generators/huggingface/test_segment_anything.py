"""Segment Anything's models as generators: against transformers' own automatic mode, and where their masks lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
import transformers
from torch.nn import functional as F
from transformers.models.sam.image_processing_sam import _build_point_grid, _generate_per_layer_crops
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

from tests.generators.conformance import GeneratorConformance, picture
from tests.generators.huggingface.sam_making import ALL, SIDE, TINY, make
from vitp_pipeline.generators.base import Generator, is_class_agnostic
from vitp_pipeline.generators.huggingface.automatic_masks import CropGeometry, cut_by_crop, select, suppress
from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid
from vitp_pipeline.generators.huggingface.segment_anything import PADS, SegmentAnythingGenerator
from vitp_pipeline.generators.views import propose
from vitp_pipeline.postprocess.points import max_points
from vitp_pipeline.postprocess.upsample import mask_logits_at_image

CELLS = SIDE // 4
"""Mask cells along a side."""


class OfSegmentAnything(GeneratorConformance):
    kind: str

    def make(self, folder: Path, seed: int = 0) -> SegmentAnythingGenerator:
        return make(folder, self.kind, seed, points_per_side=2, **ALL)

    def test_masks_have_no_classes(self, generator: Generator) -> None:
        assert is_class_agnostic(generator) and generator.classes is None
        found = propose(generator, [picture(50, 75)])[0]
        assert found.class_logits.shape == (12, 2)


class TestSam(OfSegmentAnything):
    kind = "sam"


class TestSamHq(OfSegmentAnything):
    kind = "sam_hq"


class TestSam2(OfSegmentAnything):
    kind = "sam2"


class TestSam3Tracker(OfSegmentAnything):
    kind = "sam3_tracker"


class TestEdgeTam(OfSegmentAnything):
    kind = "edgetam"


class TestSamWithCrops(GeneratorConformance):
    def make(self, folder: Path, seed: int = 0) -> SegmentAnythingGenerator:
        return make(folder, "sam", seed, points_per_side=1, crop_n_layers=1, **ALL)


# transformers' own automatic mode on the same network


def processor(kind: str) -> Any:
    square = {"height": SIDE, "width": SIDE}
    if kind in PADS:
        return transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)
    return (Sam3ImageProcessor if kind == "sam3_tracker" else transformers.Sam2ImageProcessor)(size=square)


def answer_with_blobs(generator: SegmentAnythingGenerator) -> None:
    """Put three blobs around every point in place of the network's masks, of sizes, steepness and scores that differ.

    The image enters by its mean brightness; random weights alone would give the same mask everywhere.
    """
    places = torch.arange(CELLS) * (SIDE / CELLS) + SIDE / CELLS / 2

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def forward(input_points: torch.Tensor, image_embeddings: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        x, y = input_points[0, :, 0].T[:, :, None, None, None]  # (P, 1, 1, 1) each
        around = F.adaptive_avg_pool2d(image_embeddings.mean(1)[None], 8)[0, 0]
        light = around[(y / 8).long().clamp(0, 7), (x / 8).long().clamp(0, 7)]
        reach = torch.tensor([4.0, 9.0, 17.0])[None, :, None, None] * (1 + 0.1 * light)
        far = ((places[:, None] - y) ** 2 + ((places - x) * 1.3) ** 2).sqrt()
        steep = 0.4 + 0.25 * torch.sin(0.37 * x + 0.73 * y)
        masks = (reach - far) * steep
        whole = image_embeddings.mean()  # or the crops would score alike
        wave = (0.137 * x + 0.291 * y + 0.071 * reach + whole) % 1
        scores = 0.65 + 0.34 * (2 * wave - 1).abs()[..., 0, 0]
        return Answer(pred_masks=masks[None], iou_scores=scores[None])

    generator._model.get_image_embeddings = embed
    generator._model.forward = forward


class Answer(dict):
    def __getattr__(self, name: str) -> torch.Tensor:
        return self[name]


def automatic(generator: SegmentAnythingGenerator, kind: str, image: np.ndarray) -> dict[str, Any]:
    grid = generator.grid
    mode = transformers.pipeline(
        "mask-generation", model=generator._model, image_processor=processor(kind), device="cpu"
    )
    return mode(
        Image.fromarray(image),
        points_per_batch=16,
        points_per_crop=grid.points_per_side,
        crops_n_layers=grid.crop_n_layers,
        pred_iou_thresh=grid.pred_iou_thresh,
        stability_score_thresh=grid.stability_score_thresh,
        stability_score_offset=grid.stability_score_offset,
        crops_nms_thresh=grid.box_nms_thresh,
    )


@pytest.mark.parametrize(
    ("crops", "blobs"), [(0, False), (0, True), (1, True)], ids=["network", "blobs", "blobs in crops"]
)
@pytest.mark.parametrize("kind", TINY)
def test_masks_are_those_of_the_librarys_automatic_mode(tmp_path: Path, kind: str, crops: int, blobs: bool) -> None:
    """On images that need no resize: then both see the same pixels, and without crops the masks are equal in every one.

    Square ones for the networks that see squares: the library's points cover only a part of the other ones.
    """
    # random weights give nearly flat masks: a small offset; and one mask everywhere: no suppression
    grid = {"stability_score_offset": 0.3} if blobs else {"stability_score_offset": 0.02, "box_nms_thresh": 1.0}
    thresholds = {"stability_score_thresh": 0.6, "pred_iou_thresh": 0.7 if blobs else 0.001}
    generator = make(
        tmp_path, kind, 3, points_per_side=8, points_per_batch=16, crop_n_layers=crops, **grid, **thresholds
    )
    if blobs:
        answer_with_blobs(generator)
    side = 120 if crops else SIDE  # then all crops are squares
    for size in ((side, side), (side * 3 // 4, side), (side, side // 2)) if kind in PADS else ((side, side),):
        image = picture(*size)
        ours, theirs = propose(generator, [image])[0], automatic(generator, kind, image)
        assert ours.view.resized == size
        assert len(theirs["masks"]) == len(ours.mask_logits)
        if blobs:
            assert 10 < len(ours.mask_logits) < 192 * (1 + 4 * crops) // 2  # of three at each point
        elif not crops:
            assert len(ours.mask_logits) > 0
        scores = generator_scores(generator, image)
        torch.testing.assert_close(scores, theirs["scores"].float(), atol=3e-3 if crops else 1e-5, rtol=0)
        masks = mask_logits_at_image(ours.mask_logits, ours.view) > 0
        if not crops:
            assert torch.equal(masks, torch.stack(theirs["masks"]))
        else:  # resampled once more; scores that are near each other may change places
            differ = [
                min(int((mine ^ other).sum()) for mine in masks[(scores - score).abs() < 5e-3])
                for other, score in zip(theirs["masks"], theirs["scores"], strict=True)
            ]
            assert np.mean(np.array(differ) <= 0.005 * side**2) >= 0.98


def generator_scores(generator: SegmentAnythingGenerator, image: np.ndarray) -> torch.Tensor:
    """Predicted IoU of the masks, which their objectness contains only as a factor."""
    seen: list[torch.Tensor] = []
    import vitp_pipeline.generators.huggingface.segment_anything as module

    def spy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        kept = suppress(boxes, scores, threshold)
        seen.append(scores[kept])
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "suppress", spy)
        propose(generator, [image])
    return seen[0]


# where masks lie


SHAPES = ((90, 60), (60, 90), (64, 64), (9, 7), (300, 170), (41, 200))


@pytest.fixture(params=TINY)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def answer_with(generator: SegmentAnythingGenerator, masks: torch.Tensor) -> None:
    """Make the decoder's answer (1, 1, h, w), the same at every point."""

    def forward(input_points: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        count = input_points.shape[1]
        return Answer(pred_masks=masks.expand(1, count, *masks.shape[1:]), iou_scores=torch.ones(1, count, 1))

    generator._model.forward = forward


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_the_maximum_of_a_mask_lands_on_its_pixel(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    """The decoder's highest logit is set by hand at some cells; its pixel follows from the sizes alone."""
    generator = make(tmp_path, kind, points_per_side=1, **ALL)
    scale = SIDE / max(size)
    resized = tuple(int(length * scale + 0.5) for length in size) if kind in PADS else (SIDE, SIDE)
    for share in ((0.1, 0.2), (0.5, 0.5), (0.85, 0.7)):
        # not the first cell, whose maximum reaches to the edge
        cell = tuple(max(1, int(s * r / SIDE * CELLS)) for s, r in zip(share, resized, strict=True))
        masks = torch.full((1, 1, CELLS, CELLS), -3.0)
        masks[0, 0, cell[0], cell[1]] = 5.0
        answer_with(generator, masks)
        found = propose(generator, [picture(*size)])[0]
        assert found.view.padded == (SIDE, SIDE) and found.view.resized == resized
        point = max_points(found.mask_logits, found.view, "d2")[0]
        for axis in (0, 1):
            expected = (cell[axis] + 0.5) * SIDE / CELLS * size[axis] / resized[axis]
            half = 0.5 * SIDE / CELLS * size[axis] / resized[axis]  # the maximum is flat around a cell's center
            assert abs(point[axis] + 0.5 - min(expected, size[axis] - 0.5)) <= max(1.0, 0.5 * half) + 0.5


def answer_with_brightness(generator: SegmentAnythingGenerator) -> None:
    """Make the mask the brightness of what the network was given, cell by cell; 0 where it is dark, or padding."""

    def forward(input_points: torch.Tensor, image_embeddings: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        masks = F.adaptive_avg_pool2d((image_embeddings.mean(1, keepdim=True) - 0.2).clamp(0), CELLS)
        count = input_points.shape[1]
        return Answer(pred_masks=masks.expand(1, count, 1, CELLS, CELLS), iou_scores=torch.ones(1, count, 1))

    generator._model.get_image_embeddings = lambda pixels: pixels
    generator._model.forward = forward


@pytest.mark.parametrize("crops", [0, 1, 2])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (150, 150), (300, 170), (41, 200), (500, 260)], ids=str)
def test_what_is_bright_is_in_the_mask(tmp_path: Path, kind: str, crops: int, size: tuple[int, int]) -> None:
    """A bright square in a dark image, through resize, crops, padding, the decoder's grid and back: its center of mass
    in the mask of every crop that saw it whole is where it was.
    """
    generator = make(tmp_path, kind, points_per_side=1, crop_n_layers=crops, **ALL)
    answer_with_brightness(generator)
    side = max(size) // 6
    for share in ((0.15, 0.2), (0.5, 0.6), (0.8, 0.75)):
        top, left = (int(s * (length - side)) for s, length in zip(share, size, strict=True))
        image = np.zeros((*size, 3), np.uint8)
        image[top : top + side, left : left + side] = 255
        found = propose(generator, [image])[0]
        light = mask_logits_at_image(found.mask_logits, found.view).clamp(0).numpy().astype(np.float64)
        good = 0
        cell = max(size) / CELLS
        for plane in light[light.sum((1, 2)) > 0.9 * light.sum((1, 2)).max()]:
            for axis, start in enumerate((top, left)):
                weights = plane.sum(1 - axis)
                center = (weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum()
                assert abs(center - (start + side / 2)) <= 0.5 * cell + 1
            good += 1
        assert good >= 1


def test_what_a_crop_did_not_see_is_outside_its_masks(tmp_path: Path) -> None:
    generator = make(tmp_path, "sam2", points_per_side=1, crop_n_layers=1, **ALL)
    answer_with(generator, torch.full((1, 1, CELLS, CELLS), 4.0))
    found = propose(generator, [picture(128, 128)])[0]
    assert found.mask_logits.shape[1:] == (2 * CELLS, 2 * CELLS)
    assert (found.mask_logits[0] == 4).all()  # the masks of the crops touch their inner edges, and are left out
    assert len(found.mask_logits) == 1


# the steps, one by one


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (64, 64), (1000, 41)], ids=str)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_points_and_crops_are_the_librarys(size: tuple[int, int], layers: int) -> None:
    grid = PromptGrid(points_per_side=9, crop_n_layers=layers)
    np.testing.assert_allclose(grid.points(0), _build_point_grid(9).numpy(), atol=1e-7)
    boxes, depths = _generate_per_layer_crops(layers, 512 / 1500, size)
    ours = [(layer, (left, top, left + w, top + h)) for layer, (top, left, h, w) in grid.crops(size)]
    assert ours == [(depth, tuple(box)) for depth, box in zip(depths, boxes, strict=True)]


def test_points_of_deeper_layers() -> None:
    grid = PromptGrid(points_per_side=10, crop_n_layers=2, crop_n_points_downscale_factor=2)
    assert [len(grid.points(layer)) for layer in range(3)] == [100, 25, 4]


def test_suppression_is_a_greedy_loop() -> None:
    rng = np.random.default_rng(5)
    corners = rng.uniform(0, 60, (80, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (80, 2))], 1)
    scores = rng.permutation(80) / 80

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        shared = float(np.prod(sides.clip(0)))
        return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)

    for threshold in (0.2, 0.5, 0.7, 1.0):
        kept: list[int] = []
        for index in np.argsort(-scores):
            if all(overlap(boxes[index], boxes[other]) <= threshold for other in kept):
                kept.append(int(index))
        found = suppress(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
        assert found.tolist() == kept


def test_stability_and_boxes_are_counted_at_the_crops_pixels() -> None:
    rng = np.random.default_rng(6)
    logits = torch.from_numpy(rng.normal(0, 3, (9, 6, 6)).astype(np.float32))
    logits[4] = -5.0  # empty
    geometry = CropGeometry((200, 300), (0, 100, 90, 120), (36, 48), (48, 48))
    grid = PromptGrid(pred_iou_thresh=0.0, stability_score_thresh=0.0, stability_score_offset=0.7)
    found = select(logits, torch.ones(9), geometry, grid)
    large = F.interpolate(logits[None], (48, 48), mode="bilinear", align_corners=False)[..., :36, :48]
    large = F.interpolate(large, (90, 120), mode="bilinear", align_corners=False)[0].numpy()
    expected = []
    for plane in large:
        rows, columns = np.nonzero(plane > 0)
        if not len(rows):
            continue
        box = [columns.min() + 100, rows.min(), columns.max() + 100, rows.max()]
        if abs(box[0] - 100) <= 20 or abs(box[2] - 220) <= 20 or abs(box[3] - 90) <= 20:
            continue
        expected.append((box, (plane > 0.7).sum() / (plane > -0.7).sum()))
    assert found.boxes.tolist() == [box for box, _ in expected]
    np.testing.assert_allclose(found.stability.numpy(), [share for _, share in expected], rtol=1e-6)


def test_masks_at_an_inner_edge_of_a_crop_are_left_out() -> None:
    geometry = CropGeometry((200, 300), (100, 0, 100, 150), (1, 1), (1, 1))
    boxes = torch.tensor([[30, 150, 80, 190], [0, 130, 60, 199], [60, 115, 90, 160], [60, 130, 135, 160]]).float()
    assert cut_by_crop(boxes, geometry).tolist() == [False, False, True, True]


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_the_batch_of_points_changes_nothing(tmp_path: Path, kind: str) -> None:
    one, other = (
        propose(make(tmp_path, kind, 3, points_per_side=5, points_per_batch=size, **ALL), [picture(50, 75)])[0]
        for size in (3, 64)
    )
    torch.testing.assert_close(one.mask_logits, other.mask_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.class_logits, other.class_logits, atol=1e-5, rtol=0)


def test_an_image_may_have_no_masks(tmp_path: Path) -> None:
    generator = make(tmp_path, "sam", points_per_side=2, pred_iou_thresh=1.0, stability_score_thresh=1.0)
    answer_with(generator, torch.full((1, 1, CELLS, CELLS), -4.0))
    found = propose(generator, [picture(50, 75)])[0]
    assert found.mask_logits.shape == (0, CELLS, CELLS) and found.class_logits.shape == (0, 2)


def test_objectness_is_predicted_iou_times_stability(tmp_path: Path) -> None:
    generator = make(tmp_path, "sam_hq", points_per_side=1, **ALL)
    masks = torch.full((1, 1, CELLS, CELLS), -4.0)
    masks[..., :8] = 4.0
    masks[..., :4, 8] = 0.5  # within the offset
    answer_with(generator, masks)
    found = propose(generator, [picture(64, 64)])[0]
    objectness = found.class_logits.double().softmax(1)[:, 0]
    plane = mask_logits_at_image(found.mask_logits, found.view)
    share = (plane > 1).sum() / (plane > -1).sum()
    assert 0.9 < share < 1 and abs(objectness.item() - share.item()) < 1e-6
