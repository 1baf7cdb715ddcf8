from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import View, normalize_points
from vitp_pipeline.postprocess.points import center_points, local_maxima_points, max_points, random_points
from vitp_pipeline.postprocess.upsample import iter_outlines, mask_logits_at_image


def plain(mask_logits: torch.Tensor, view: View) -> torch.Tensor:
    """All queries on the whole upright image, in float64: upsampled by torch and cropped; then every pixel whose center
    lies in what was seen is interpolated there, beyond the outermost samples constantly.
    """
    up = F.interpolate(mask_logits[None].double(), view.padded, mode="bilinear")[0]
    planes = up[:, : view.seen[2], : view.seen[3]].numpy()
    seen = []
    for axis in (0, 1):
        start, length = view.seen[axis], view.seen[axis + 2]
        ratio = Fraction(view.resized[axis], view.original[axis])
        centers = [(i + Fraction(1, 2)) * ratio for i in range(view.original[axis])]
        inside = [i for i, c in enumerate(centers) if start <= c < start + length]
        places = np.array([float(centers[i] - start) - 0.5 for i in inside])
        weights = [np.interp(places, np.arange(length), row) for row in np.eye(length)]
        planes = np.moveaxis(np.tensordot(np.stack(weights, 1), planes, (1, axis + 1)), 0, axis + 1)
        seen.append(inside)
    whole = np.full((len(planes), *view.original), -np.inf)
    whole[:, seen[0][0] : seen[0][-1] + 1, seen[1][0] : seen[1][-1] + 1] = planes
    return torch.from_numpy(whole[:, :, ::-1].copy() if view.flip else whole)


sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@st.composite
def views(draw):
    """Whole images, flipped ones and windows; a window shows the center of at least one pixel."""
    mask = draw(sizes)
    scale = draw(st.sampled_from([1, 2, 4, 3]))
    padded = mask[0] * scale, mask[1] * scale
    resized = draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1]))
    original = draw(st.one_of(st.just(resized), st.tuples(st.integers(1, 60), st.integers(1, 60))))
    flip = draw(st.booleans())
    if draw(st.booleans()):
        return View(original, resized, padded, mask, flip=flip)
    # what was resized is the window now: let it lie somewhere in something larger
    around = [draw(st.tuples(st.integers(0, 9), st.integers(0, 9))) for _ in range(2)]
    whole = tuple(a + r + b for r, (a, b) in zip(resized, around, strict=True))
    original = draw(st.one_of(st.just(whole), st.tuples(st.integers(1, 60), st.integers(1, 60))))
    view = View(original, whole, padded, mask, (around[0][0], around[1][0], *resized), flip)
    for axis, (before, _) in enumerate(around):
        ratio = Fraction(whole[axis], original[axis])
        assume(any(before <= (i + Fraction(1, 2)) * ratio < before + resized[axis] for i in range(original[axis])))
    return view


@settings(max_examples=150, deadline=None, derandomize=True)
@given(views(), st.integers(0, 2**32 - 1), st.sampled_from(["noise", "integers", "flat"]))
def test_max_is_the_argmax_of_the_whole_plane(view, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(5, *view.mask, generator=generator) * 10
    if kind == "integers":
        masks = masks.div(5).round()
    if kind == "flat":
        masks = masks.sign().clamp(max=0)
    points = max_points(masks, view, "d2")
    whole = plain(masks, view).flatten(1)
    assert points.dtype == np.int32 and points.shape == (5, 2)
    chosen = torch.tensor(points[:, 0] * view.original[1] + points[:, 1]).long()
    best = whole.max(1).values
    reached = whole.gather(1, chosen[:, None])[:, 0]
    assert (best - reached).abs().max() <= 1e-9 * best.abs().max().clamp(min=1)
    # no clearly better pixel, and none as good that comes earlier
    for query in range(5):
        earlier = whole[query, : chosen[query]]
        assert not (earlier > reached[query] + 1e-9).any()
    if kind != "noise":
        return
    clear = [q for q in range(5) if (whole[q] > best[q] - 1e-9).sum() == 1]
    assert torch.equal(chosen[clear], whole.argmax(1)[clear])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(views(), st.integers(0, 2**32 - 1), st.floats(-3, 1))
def test_outlines_made_of_parts_are_those_of_the_whole(view, seed, level):
    masks = torch.randn(4, *view.mask, generator=torch.Generator().manual_seed(seed)) + level
    outlines = list(iter_outlines(masks, view))
    for outline, plane in zip(outlines, mask_logits_at_image(masks, view) > 0, strict=True):
        found = np.zeros(view.original, bool)
        if outline is not None:
            height, width = outline.inside.shape
            found[outline.top : outline.top + height, outline.left : outline.left + width] = outline.inside
        assert np.array_equal(found, plane.numpy())


def test_a_plateau_goes_to_its_first_pixel():
    view = View((16, 24), (16, 24), (16, 24), (4, 6))
    for row, col, expected in [(0, 0, (0, 0)), (3, 5, (14, 22)), (3, 0, (14, 0)), (0, 5, (0, 22))]:
        masks = torch.zeros(1, 4, 6)
        masks[0, row, col] = 0.3
        assert tuple(max_points(masks, view, "mmseg1")[0]) == expected
    assert tuple(max_points(torch.full((1, 4, 6), 0.1), view, "mmseg1")[0]) == (0, 0)
    # -4 in all cells but two: both maxima are equal, the upper one wins
    masks = torch.full((1, 4, 6), -4.0)
    masks[0, 1, 4] = masks[0, 2, 1] = 7.7
    assert tuple(max_points(masks, view, "mmseg1")[0]) == (5, 17)


def test_padding_is_never_chosen():
    view = View((10, 10), (20, 20), (32, 32), (8, 8))
    masks = torch.zeros(1, 8, 8)
    masks[0, 6:, 6:] = 100.0
    masks[0, 2, 2] = 1.0
    for at in ("image", "mask"):
        assert (max_points(masks, view, "d2", at) == [[4 if at == "image" else 5] * 2]).all()


def test_max_at_mask_resolution():
    # Index 15 of a 4x6 map is (2, 3), the classifier's (0, 0)
    masks = torch.zeros(1, 4, 6)
    masks[0].view(-1)[15] = 1
    view = View((4, 6), (4, 6), (4, 6), (4, 6))
    points = max_points(masks, view, "mmseg1", at="mask")
    assert points.tolist() == [[2, 3]]
    assert normalize_points(points, view.original).tolist() == [[0, 0]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(views(), st.integers(0, 2**32 - 1))
def test_max_at_mask_resolution_against_a_loop(view, seed):
    masks = torch.randint(0, 9, (2, *view.mask), generator=torch.Generator().manual_seed(seed)).float()
    points = max_points(masks, view, "mmseg1", at="mask")
    for mask, point in zip(masks.numpy(), points, strict=True):
        best = None
        for row in range(view.mask[0]):
            for col in range(view.mask[1]):
                y = (row + 0.5) * view.padded[0] / view.mask[0]
                x = (col + 0.5) * view.padded[1] / view.mask[1]
                inside = y < view.seen[2] and x < view.seen[3]
                if inside and (best is None or mask[row, col] > best[0]):
                    y, x = y + view.seen[0], x + view.seen[1]
                    x = view.resized[1] - x if view.flip else x
                    y, x = y * view.original[0] / view.resized[0], x * view.original[1] / view.resized[1]
                    best = mask[row, col], y, x
        if best is not None:  # the pixel [point, point + 1) contains the center
            assert point[0] - 1e-9 <= best[1] < point[0] + 1 + 1e-9
            assert point[1] - 1e-9 <= best[2] < point[1] + 1 + 1e-9


def test_an_image_of_one_pixel_and_one_smaller_than_a_cell():
    view = View((1, 1), (1, 1), (32, 32), (8, 8))
    masks = torch.randn(3, 8, 8)
    for at in ("image", "mask"):
        assert (max_points(masks, view, "mmseg1", at) == 0).all()


def blob_view():
    view = View((32, 48), (32, 48), (32, 64), (8, 16))
    masks = torch.full((3, 8, 16), -5.0)
    masks[0, 2:7, 1:6] = 5.0
    masks[1, :, :] = 5.0
    masks[2] = -torch.arange(128.0).view(8, 16) - 1
    return masks, view


@settings(max_examples=80, deadline=None, derandomize=True)
@given(views(), st.integers(0, 2**32 - 1))
def test_planes_and_points_inside_of_any_view(view, seed):
    """Where the logits lie on the upright image, and that every policy stays where they are positive."""
    masks = torch.randn(3, *view.mask, generator=torch.Generator().manual_seed(seed)) * 5
    whole = plain(masks, view)
    planes = mask_logits_at_image(masks, view)
    assert torch.equal(planes.isneginf(), whole.isneginf())
    seen = whole.isfinite()
    torch.testing.assert_close(planes[seen].double(), whole[seen], atol=1e-4, rtol=0)
    for points in (center_points(masks, view, "d2"), random_points(masks, view, "d2", "a", seed)):
        for query, (row, col) in enumerate(points):
            assert whole[query, row, col] > (-1e-4 if (whole[query] > 1e-4).any() else -math.inf)


def test_center_is_farthest_from_the_outside():
    masks, view = blob_view()
    points = center_points(masks, view, "d2")
    for query, positive in enumerate((plain(masks, view) > 0).numpy()[:2]):
        outside = np.argwhere(~np.pad(positive, 1)) - 1
        depth = np.zeros(positive.shape)
        for row, col in np.argwhere(positive):
            depth[row, col] = np.sqrt(((outside - [row, col]) ** 2).sum(1).min())
        assert tuple(points[query]) == np.unravel_index(depth.argmax(), depth.shape)
    assert tuple(points[1]) == (15, 15)  # a full image: the border counts as outside
    assert (points[2] == max_points(masks, view, "d2")[2]).all()  # no positive pixel


def test_random_points_lie_inside_and_depend_on_image_and_query_alone():
    masks, view = blob_view()
    points = random_points(masks, view, "d2", "image-1")
    positive = (plain(masks, view) > 0).numpy()
    assert positive[0][tuple(points[0])] and positive[1][tuple(points[1])]
    assert (points[2] == max_points(masks, view, "d2")[2]).all()
    assert (random_points(masks, view, "d2", "image-1") == points).all()
    assert (random_points(masks[:2], view, "d2", "image-1") == points[:2]).all()
    assert (random_points(masks, view, "d2", "image-2") != points).any()
    assert (random_points(masks, view, "d2", "image-1", seed=1) != points).any()


def test_random_points_are_uniform():
    view = View((2, 2), (2, 2), (2, 2), (2, 2))
    masks = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])
    drawn = [tuple(random_points(masks, view, "d2", str(i))[0].tolist()) for i in range(600)]
    counts = [drawn.count(p) for p in ((0, 0), (1, 0), (1, 1))]
    assert sum(counts) == 600 and min(counts) > 150


def test_no_queries():
    view = View((8, 8), (8, 8), (8, 8), (2, 2))
    none = torch.zeros(0, 2, 2)
    for points in (max_points(none, view, "d2"), max_points(none, view, "d2", "mask")):
        assert points.shape == (0, 2)
    assert center_points(none, view, "d2").shape == random_points(none, view, "d2", "x").shape == (0, 2)


def test_bad_arguments():
    view = View((8, 8), (8, 8), (8, 8), (2, 2))
    masks = torch.zeros(1, 2, 2)
    with pytest.raises(UsageError):
        max_points(masks, view, "mmseg9")
    with pytest.raises(UsageError):
        max_points(masks, view, "d2", at="center")
    with pytest.raises(IncompatibleError):
        max_points(torch.zeros(1, 3, 3), view, "d2")


def test_the_search_skips_most_of_the_image():
    """Real masks are peaked or flat-topped; 60 of them at 640x480 must stay far below the plain way's
    time.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(60, 8, 10, generator=generator)
    masks = F.interpolate(coarse[None], (120, 160), mode="bicubic")[0] * 8
    view = View((480, 640), (480, 640), (480, 640), (120, 160))
    start = time.process_time()
    points = max_points(masks, view, "mmseg1")
    assert time.process_time() - start < 2.0
    flat = plain(masks, view).flatten(1)
    assert (flat.argmax(1).numpy() == points[:, 0] * 640 + points[:, 1]).all()


def slow_local_maxima(mask: np.ndarray, view: View, first: list[int], count: int) -> list[list[int]]:
    """The definition in loops: local maxima among the cells inside the image, highest first, kept when far enough."""
    side = [view.padded[i] / view.mask[i] * view.original[i] / view.resized[i] for i in (0, 1)]
    centers = []  # of the cells of an axis: original pixel by cell
    for i in (0, 1):
        at = {c: Fraction((2 * c + 1) * view.padded[i], 2 * view.mask[i]) for c in range(view.mask[i])}
        at = {c: y + view.seen[i] for c, y in at.items() if y < view.seen[i + 2]}
        if i == 1 and view.flip:
            at = {c: view.resized[1] - x for c, x in at.items()}
        pixels = {c: int(y * view.original[i] / view.resized[i]) for c, y in at.items()}
        if not pixels:  # the first pixel that is seen
            shown = np.flatnonzero(np.isfinite(plain(torch.zeros(1, *view.mask), view)[0].numpy()).any(1 - i))
            pixels = {0: int(shown[-1 if i == 1 and view.flip else 0])}
        centers.append(pixels)
    area, maxima = 0.0, []
    for r, row in centers[0].items():
        for c, col in centers[1].items():
            if mask[r, c] > 0:
                area += side[0] * side[1]
                near = [mask[a, b] for a in centers[0] for b in centers[1] if abs(a - r) <= 1 and abs(b - c) <= 1]
                if mask[r, c] >= max(near):
                    maxima.append((-mask[r, c], r, c, row, col))
    taken = [first]
    for *_, row, col in sorted(maxima):
        apart = max(0.25**2 * area, 1.0)
        if len(taken) < count and all((row - a) ** 2 + (col - b) ** 2 >= apart for a, b in taken):
            taken.append([row, col])
    return taken + [first] * (count - len(taken))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(views(), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["image", "mask"]), st.integers(1, 5))
def test_local_maxima_against_loops(view, seed, integers, at, count):
    masks = torch.randn(4, *view.mask, generator=torch.Generator().manual_seed(seed)) * 3
    masks[3] = -masks[3].abs()
    if integers:
        masks = masks.round()  # plateaus and ties
    points = local_maxima_points(masks, view, "d2", count, at)
    assert points.shape == (4, count, 2) and points.dtype == np.int32
    first = max_points(masks, view, "d2", at)
    for query in range(4):
        assert points[query].tolist() == slow_local_maxima(masks[query].numpy(), view, first[query].tolist(), count)


def test_local_maxima_of_two_hills_and_of_none():
    view = View((64, 64), (64, 64), (64, 64), (16, 16))
    row, col = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")

    def hill(r, c, height):
        return height - 0.5 * ((row - r) ** 2 + (col - c) ** 2)

    masks = torch.stack(
        [torch.maximum(hill(3, 3, 8.0), hill(11, 12, 6.0)), torch.maximum(hill(3, 3, 8.0), hill(3, 4, 8.2))]
    )
    masks = torch.cat([masks, -row[None] - 1])
    points = local_maxima_points(masks, view, "mmseg1", 3)
    top = max_points(masks, view, "mmseg1")
    assert points[0].tolist() == [top[0].tolist(), [46, 50], top[0].tolist()]  # the second is cell (11, 12)
    assert (points[1] == top[1]).all()  # one hill: the maximum beside the highest one is too near
    assert (points[2] == top[2]).all()  # no positive logit
    assert local_maxima_points(masks[:0], view, "d2", 3).shape == (0, 3, 2)


def test_local_maxima_do_not_depend_on_other_masks():
    masks = torch.randn(6, 20, 30, generator=torch.Generator().manual_seed(1)) * 4
    view = View((75, 111), (80, 120), (80, 120), (20, 30))
    whole = local_maxima_points(masks, view, "d2", 4)
    for query in range(6):
        assert (local_maxima_points(masks[query : query + 1], view, "d2", 4)[0] == whole[query]).all()
