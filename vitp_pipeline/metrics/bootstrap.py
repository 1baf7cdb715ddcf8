"""Bootstrap over images: how much of a difference between two results may be due to the choice of images.

IoU needs three numbers per image and class, so resampling a data set is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.metrics.semantic import mean_iou

_UNPAIRED = "a paired comparison needs the same images, in the same order, for both results"
_DRAWN_AT_ONCE = 1 << 22
"""Numbers of the resampling held at once: 32 MiB."""
_GROUP = 1024
"""Images whose areas are kept together."""
_DENSE = 1 << 22
"""Numbers of a dense matrix of areas: 32 MiB."""

SINGLE = 10_000
"""Up to this many images are resampled one by one; more are resampled in `BLOCKS` blocks."""
BLOCKS = 2_000

Metric = Callable[[np.ndarray], np.ndarray]
"""(…, K, 3) areas summed over images → (…) values."""


@dataclass(frozen=True)
class Interval:
    """`estimate` on the data itself, and the percentile interval [low, high] of the resamples."""

    estimate: float
    low: float
    high: float
    level: float


def miou(total: np.ndarray) -> np.ndarray:
    """Mean IoU over the classes present in the (resampled) ground truth: (…, K, 3) → (…)."""
    return mean_iou(total, "present")


def pixel_accuracy(total: np.ndarray) -> np.ndarray:
    """(…, K, 3) → (…)."""
    pixels = total[..., 1].sum(-1)
    return np.asarray(np.divide(total[..., 0].sum(-1), pixels, out=np.full(np.shape(pixels), np.nan), where=pixels > 0))


def sparse_areas(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, pixels: np.ndarray, images: int, classes: int
) -> np.ndarray:
    """Areas of images whose confusions are stored sparsely, one entry a pair of classes that occurs in an image.

    Args:
        image, truth, predicted, pixels: (E,) integers: index of the image, both classes (the predicted one IGNORE where
            there is none), how many pixels.
        images, classes: N, K.
    Returns:
        (N, K, 3) int64: intersection, ground-truth area, predicted area, as `metrics.semantic.areas`.
    """
    out = np.zeros((images, classes, 3), np.int64)
    same = truth == predicted
    np.add.at(out[..., 0], (image[same], truth[same]), pixels[same])
    np.add.at(out[..., 1], (image, truth), pixels)
    some = predicted != IGNORE
    np.add.at(out[..., 2], (image[some], predicted[some]), pixels[some])
    return out


class SparseAreas:
    """Areas of many images in little memory, of R results beside one ground truth.

    It takes 6 + 8 R bytes a class that occurs in an image. The bootstrap draws the images in the order they came in.
    """

    def __init__(self, classes: int, results: int) -> None:
        """Args: K, R."""
        self.classes, self.results, self.images = classes, results, 0
        self._groups: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, areas: np.ndarray) -> None:
        """Add some images; those without any labeled pixel are passed over.

        Args:
            areas: (R, n, K, 3) int64, see `sparse_areas`; the ground truth's column is the same for all R.
        Raises:
            IncompatibleError: the ground truths differ.
        """
        truth = areas[0, ..., 1]
        if not (areas[..., 1] == truth).all():
            raise IncompatibleError(_UNPAIRED)
        areas = areas[:, truth.any(1)]
        occurs = areas.any((0, 3))  # (n, K)
        found = areas[:, occurs]  # (R, E, 3)
        values = np.concatenate([found[:1, :, 1], found[..., 0], found[..., 2]])
        if values.size and values.max() >= 1 << 32:
            raise ValueError("an image has 2^32 pixels or more")
        self.extend(
            occurs.sum(1).astype(np.uint16), np.nonzero(occurs)[1].astype(np.uint16), values.T.astype(np.uint32)
        )

    def extend(self, counts: np.ndarray, classes: np.ndarray, values: np.ndarray) -> None:
        """Append the `content` of another one."""
        new = counts, classes, values
        self.images += len(counts)
        if self._groups and len(self._groups[-1][0]) < _GROUP:
            first, second, third = (np.concatenate(pair) for pair in zip(self._groups.pop(), new, strict=True))
            new = first, second, third
        self._groups.append(new)

    def content(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number of classes in each image (N,) uint16; these classes (E,) uint16 and their areas (E, 1 + 2 R)
        uint32: ground truth, intersections, predictions.
        """
        width = 1 + 2 * self.results
        none = np.zeros(0, np.uint16), np.zeros(0, np.uint16), np.zeros((0, width), np.uint32)
        counts, classes, values = (np.concatenate(columns) for columns in zip(none, *self._groups, strict=True))
        return counts, classes, values

    def resampled(self, samples: int = 1000, seed: int = 0) -> np.ndarray:
        """(samples, R, K, 3) float64 sums over resamples of the images, to the last bit those that `interval` draws.
        Without an image they are 0, of which no figure exists.
        """
        if not self.images:
            return np.zeros((samples, self.results, self.classes, 3))
        generator, even = np.random.default_rng(seed), np.full(self.images, 1.0 / self.images)
        columns = 2 * self.results + 1
        sums = np.zeros((samples, self.classes * columns))
        block = max(1, _DRAWN_AT_ONCE // self.images)
        for first in range(0, samples, block):
            rows = sums[first : first + block]
            draws = generator.multinomial(self.images, even, size=len(rows)).astype(np.float64)
            for image, areas in self._dense():
                rows += draws[:, image : image + len(areas)] @ areas
        truth, both, predicted = np.split(sums.reshape(samples, self.classes, columns), [1, 1 + self.results], axis=2)
        stacked = np.stack([both, np.broadcast_to(truth, both.shape), predicted], -1)  # (B, K, R, 3)
        return np.moveaxis(stacked, 2, 1)

    def _dense(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first image, (n, K · (2 R + 1)) float64 areas) of some images at a time.

        Products of float64 are exact here: sums stay below 2^53.
        """
        image, columns = 0, 2 * self.results + 1
        some = max(1, _DENSE // (self.classes * columns))
        for counts, classes, values in self._groups:
            row = np.repeat(np.arange(len(counts)), counts)
            for first in range(0, len(counts), some):
                entries = slice(*np.searchsorted(row, [first, first + some]))
                areas = np.zeros((min(some, len(counts) - first), self.classes, columns))
                areas[row[entries] - first, classes[entries]] = values[entries]
                yield image + first, areas.reshape(len(areas), -1)
            image += len(counts)


class BlockAreas:
    """Areas of more images than can be resampled one by one, summed over stretches of consecutive ones, which are
    resampled in their place. For images in any order this gives the same spread of a sum; where neighbors are alike,
    as in videos, it does not take them for independent.
    """

    def __init__(self, classes: int, results: int, images: int) -> None:
        """Args: K, R, and how many images there are in all."""
        self.classes, self.results, self._of = classes, results, images
        self._sums = np.zeros((BLOCKS, classes, 1 + 2 * results), np.int64)

    @property
    def images(self) -> int:
        """Blocks that have a labeled pixel."""
        return int(self._sums[..., 0].any(1).sum())

    def add(self, areas: np.ndarray, first: int) -> None:
        """Add some images, `first` being the number of the first one; areas and errors as of `SparseAreas.add`."""
        truth = areas[0, ..., 1]
        if not (areas[..., 1] == truth).all():
            raise IncompatibleError(_UNPAIRED)
        block = np.arange(first, first + len(truth)) * BLOCKS // self._of
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        values = np.concatenate([truth[None], areas[..., 0], areas[..., 2]])
        self._sums[block[starts]] += np.moveaxis(np.add.reduceat(values, starts, axis=1), 0, -1)

    def content(self) -> tuple[np.ndarray, np.ndarray]:
        """(blocks that are not empty (B,), their sums (B, K, 1 + 2 R) int64)."""
        some = np.flatnonzero(self._sums.any((1, 2)))
        return some, self._sums[some]

    def extend(self, blocks: np.ndarray, sums: np.ndarray) -> None:
        """Add the `content` of another one."""
        self._sums[blocks] += sums

    def resampled(self, samples: int = 1000, seed: int = 0) -> np.ndarray:
        """As `SparseAreas.resampled`, of the blocks."""
        found = self._sums[self._sums[..., 0].any(1)]
        draws = _draws(len(found), samples, seed)
        # whole numbers below 2^53 (10^15 pixels), so exact in whichever order they are added
        sums = draws @ found.reshape(len(found), self._sums[0].size).astype(np.float64)
        truth, both, predicted = np.split(sums.reshape(samples, self.classes, -1), [1, 1 + self.results], axis=2)
        stacked = np.stack([both, np.broadcast_to(truth, both.shape), predicted], -1)
        return np.moveaxis(stacked, 2, 1)


def percentile_interval(estimate: float, values: np.ndarray, level: float = 0.95) -> Interval:
    """The interval that the given share of the resamples' values, (B,), lies in."""
    tail = 50.0 * (1.0 - level)
    low, high = np.nanpercentile(values, [tail, 100.0 - tail]) if not np.isnan(values).all() else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high), level)


def interval(
    image_areas: np.ndarray, metric: Metric = miou, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of a metric under resampling of the images.

    Args:
        image_areas: (N, K, 3) numbers, see `sparse_areas`.
        metric: `miou`, `pixel_accuracy` or any function of summed areas.
        samples: number of resamples.
        level: share of the resamples inside the interval, in (0, 1).
        seed: of the resampling.
    """
    values = metric(_resample(image_areas, samples, seed))
    return percentile_interval(float(metric(image_areas.sum(0))), values, level)


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    metric: Metric = miou,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of metric(second) − metric(first) where both see the same images in every resample.

    Args:
        first, second: (N, K, 3) areas of the same images in the same order.
        metric, samples, level, seed: as `interval`.
    Raises:
        IncompatibleError: shapes or ground truths differ.
    """
    _check_paired(first, second)
    values = metric(_resample(second, samples, seed)) - metric(_resample(first, samples, seed))
    return percentile_interval(float(metric(second.sum(0)) - metric(first.sum(0))), values, level)


def paired_intervals(
    first: np.ndarray,
    second: np.ndarray,
    metric: Metric,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`paired_difference` of several figures in one resampling, e.g. the IoU of every class.

    Args:
        first, second, samples, level, seed: as `paired_difference`.
        metric: (…, K, 3) summed areas → (…, M) values, nan where one does not exist.
    Returns:
        (M,) estimates, lows and highs; of a figure that a resample lacks, over the other resamples.
    Raises:
        IncompatibleError: as `paired_difference`.
    """
    _check_paired(first, second)
    values = metric(_resample(second, samples, seed)) - metric(_resample(first, samples, seed))
    tail = 50.0 * (1.0 - level)
    estimate = metric(second.sum(0)) - metric(first.sum(0))
    low, high = np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    some = ~np.isnan(values).all(0)
    if some.any():
        low[some], high[some] = np.nanpercentile(values[:, some], [tail, 100.0 - tail], axis=0)
    return estimate, low, high


def _check_paired(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or not np.array_equal(first[..., 1], second[..., 1]):
        raise IncompatibleError(_UNPAIRED)


def _resample(image_areas: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """(B, K, 3) float64 summed areas of B draws of N images with replacement (exact: pixel counts stay below
    2^53). All 0 for N = 0.
    """
    n, shape = len(image_areas), image_areas.shape[1:]
    flat = np.asarray(image_areas, np.float64).reshape(n, int(np.prod(shape)))
    return (_draws(n, samples, seed) @ flat).reshape(samples, *shape)


def _draws(images: int, samples: int, seed: int) -> np.ndarray:
    """(samples, images) float64: how often each image is drawn in each resample."""
    if not images:
        return np.zeros((samples, 0))
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1.0 / images), samples).astype(np.float64)
