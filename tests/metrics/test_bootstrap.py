from __future__ import annotations

import numpy as np
import pytest

from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.metrics import bootstrap
from vitp_pipeline.metrics.bootstrap import (
    BlockAreas,
    SparseAreas,
    interval,
    miou,
    paired_difference,
    paired_intervals,
    percentile_interval,
    pixel_accuracy,
    sparse_areas,
)
from vitp_pipeline.metrics.semantic import Confusion, ious

K = 4


def results(n=40, skill=0.7, seed=0):
    """Per-image counts of a predictor that is right with probability `skill`; the truth does not depend on
    it.
    """
    truth, guess = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    images, total = [], Confusion(K)
    for _ in range(n):
        gt = truth.integers(-1, K, (8, 8)).astype(np.int16)
        wrong = guess.integers(0, K, gt.shape)
        pred = np.where(guess.random(gt.shape) < skill, np.maximum(gt, 0), wrong).astype(np.int16)
        counts = total.update(pred, gt)
        pairs = np.nonzero(counts)
        images.append((*pairs, counts[pairs]))
    return images, total


def areas_of(images):
    """The areas of `results`, through the flat entries that are stored."""
    number = np.repeat(np.arange(len(images)), [len(pixels) for _, _, pixels in images])
    columns = (np.concatenate(column) for column in zip(*images, strict=True))
    return sparse_areas(number, *columns, len(images), K)


def test_the_estimate_is_the_metric_itself():
    images, total = results()
    areas = areas_of(images)
    assert areas.shape == (40, K, 3)
    assert interval(areas).estimate == pytest.approx(total.miou())
    assert interval(areas, pixel_accuracy).estimate == pytest.approx(total.pixel_accuracy())


def test_resamples_against_a_loop():
    images, _ = results(n=7)
    areas = areas_of(images)
    got = interval(areas, samples=50, level=0.8, seed=3)
    draws = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=50)
    values = []
    for draw in draws:
        state = Confusion(K)
        for times, (gt, pred, pixels) in zip(draw, images, strict=True):
            for g, p, n in zip(gt, pred, pixels, strict=True):
                state.counts[g, p] += times * n
        values.append(state.miou())
    np.testing.assert_allclose([got.low, got.high], np.percentile(values, [10, 90]))
    assert interval(areas, samples=50, level=0.8, seed=3) == got
    assert interval(areas, samples=50, level=0.8, seed=4) != got


def test_pairing_makes_a_small_difference_visible():
    worse, better = (areas_of(results(skill=s)[0]) for s in (0.70, 0.75))
    difference = paired_difference(worse, better)
    assert difference.estimate == pytest.approx(miou(better.sum(0)) - miou(worse.sum(0)))
    assert 0 < difference.low < difference.estimate < difference.high
    assert paired_difference(worse, worse, pixel_accuracy).high == 0
    flipped = paired_difference(better, worse)
    assert (flipped.low, flipped.high) == pytest.approx((-difference.high, -difference.low))


def test_the_interval_has_the_width_of_the_standard_error():
    areas = areas_of(results(n=200)[0])
    got = interval(areas, pixel_accuracy, samples=4000)
    per_image, pixels = areas[..., 0].sum(1), areas[..., 1].sum(1)
    residual = per_image - got.estimate * pixels
    standard_error = np.sqrt((residual**2).sum()) / pixels.sum()
    assert got.high - got.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_a_class_in_one_image_may_vanish_from_a_resample():
    areas = np.zeros((3, 2, 3), int)
    areas[:, 0] = 4
    areas[0, 1] = [0, 2, 0]
    got = interval(areas, samples=500)
    assert got.estimate == 0.5 and (got.low, got.high) == (0.5, 1.0)


def test_bad_arguments():
    first = areas_of(results()[0])
    with pytest.raises(IncompatibleError):
        paired_difference(first, first[:-1])
    with pytest.raises(IncompatibleError):
        paired_difference(first, areas_of(results(seed=5)[0]))


@pytest.mark.parametrize(("drawn_at_once", "group", "part"), [(1 << 19, 1024, 7), (100, 1024, 40), (1, 8, 3)])
def test_sparse_images_resample_as_dense_ones(monkeypatch, drawn_at_once, group, part):
    """Whatever is held at a time: the same images are drawn, and the intervals are equal to the last bit."""
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", drawn_at_once)
    monkeypatch.setattr(bootstrap, "_GROUP", group)
    first, second = (areas_of(results(skill=skill)[0]) for skill in (0.6, 0.7))
    sparse = SparseAreas(K, 2)
    empty = np.zeros((2, 2, K, 3), np.int64)
    for start in range(0, 40, part):
        sparse.add(empty)  # images without a labeled pixel do not count
        sparse.add(np.stack([first, second])[:, start : start + part])
    values = miou(sparse.resampled(200))
    assert sparse.images == 40
    assert percentile_interval(miou(second.sum(0)), values[:, 1]) == interval(second, samples=200)
    gain = percentile_interval(miou(second.sum(0)) - miou(first.sum(0)), values[:, 1] - values[:, 0])
    assert gain == paired_difference(first, second, samples=200)


@pytest.mark.parametrize("of", [miou, pixel_accuracy])
def test_figures_of_nothing_do_not_exist(of):
    """No image, or images without a labeled pixel: NaN everywhere, and no error."""
    none = areas_of(results()[0])[:0]
    for areas in (none, np.zeros((3, K, 3), np.int64)):
        assert np.isnan([interval(areas, of).low, interval(areas, of).estimate]).all()
        gain = paired_difference(areas, areas, of)
        assert np.isnan([gain.estimate, gain.low, gain.high]).all()
        assert all(np.isnan(values).all() for values in paired_intervals(areas, areas, ious))
    assert np.isnan(of(SparseAreas(K, 2).resampled(5))).all()
    assert np.isnan(of(BlockAreas(K, 2, 7).resampled(5))).all()


def test_sparse_images_say_what_is_wrong():
    areas = areas_of(results()[0])
    with pytest.raises(IncompatibleError, match="paired"):
        SparseAreas(K, 2).add(np.stack([areas, areas[::-1]]))


@pytest.mark.parametrize("pieces", [(40,), (7, 20, 13), (1,) * 40])
def test_blocks_are_resampled_like_images_that_hold_them(monkeypatch, pieces):
    """Whatever pieces the images come in, blocks are sums of consecutive images, drawn as images would be."""
    monkeypatch.setattr(bootstrap, "BLOCKS", 8)
    both = np.stack([areas_of(results(skill=skill)[0]) for skill in (0.6, 0.7)])
    blocks, first = BlockAreas(K, 2, 40), 0
    for count in pieces:
        other = BlockAreas(K, 2, 40)  # as a shard of its own
        other.add(both[:, first : first + count], first)
        blocks.extend(*other.content())
        first += count
    summed = both.reshape(2, 8, 5, K, 3).sum(2)
    sparse = SparseAreas(K, 2)
    sparse.add(summed)
    assert blocks.images == 8
    np.testing.assert_array_equal(blocks.resampled(50), sparse.resampled(50))


def test_blocks_give_the_width_that_images_give(monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCKS", 200)
    areas = areas_of(results(n=2000)[0])
    blocks = BlockAreas(K, 1, 2000)
    blocks.add(areas[None], 0)
    values = pixel_accuracy(blocks.resampled(2000)[:, 0])
    single = interval(areas, pixel_accuracy, samples=2000)
    width = np.subtract(*np.percentile(values, [97.5, 2.5]))
    assert width == pytest.approx(single.high - single.low, rel=0.15)


def test_blocks_without_a_labeled_pixel_are_passed_over(monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCKS", 4)
    blocks = BlockAreas(K, 1, 8)
    areas = np.zeros((1, 8, K, 3), np.int64)
    assert np.isnan(miou(blocks.resampled(5))).all()
    areas[0, 3, 0] = [1, 2, 1]
    blocks.add(areas, 0)
    assert blocks.images == 1 and (blocks.resampled(5)[:, 0, 0] == [1, 2, 1]).all()
    areas[..., 1] += np.arange(K)
    with pytest.raises(IncompatibleError):
        BlockAreas(K, 2, 8).add(np.concatenate([areas, areas + 1]), 0)


def test_content_of_one_extends_another():
    areas = areas_of(results()[0])[None]
    whole, joined = SparseAreas(K, 1), SparseAreas(K, 1)
    whole.add(areas)
    for half in (areas[:, :15], areas[:, 15:]):
        piece = SparseAreas(K, 1)
        piece.add(half)
        joined.extend(*piece.content())
    np.testing.assert_array_equal(whole.resampled(20), joined.resampled(20))
