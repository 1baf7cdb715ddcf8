"""Class scores of an image from several views of it: scales, flipped ones, sliding windows.

A frame is the image at one scale, flipped or not; its windows share it.

| protocol | the windows of a frame | the frames |
|---|---|---|
| `mmseg0`, `mmseg1` | mean of their scores in the resized image | mean of the scores' softmax at the original size |
| `d2`, `mmdet` | the same, with the sigmoid taken there | mean of the scores at the original size |

Sources: mmsegmentation's `slide_inference` and `SegTTAModel` of 1.x and 0.x, and `SemanticSegmentorWithTTA` of
detectron2. A single frame is left as it is: a softmax would not change its argmax. detectron2 and mmdetection have no
windows of their own; they are merged as in mmsegmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.datasets.spec import IGNORE
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import Size, View
from vitp_pipeline.postprocess.resize import lerp, resize_band
from vitp_pipeline.postprocess.semantic import (
    argmax,
    band_rows,
    check_scored,
    has_class,
    seen_scores,
    semantic_label_maps,
)
from vitp_pipeline.postprocess.upsample import image_logit_band

BUDGET = 256 << 20


class ScoredView(NamedTuple):
    """A view's masks (Q, h, w), the class probabilities of its queries (A, Q, K), one set per α, and its geometry."""

    mask_logits: Tensor
    probs: Tensor
    view: View


class _Frame(NamedTuple):
    """A frame whose windows are being added up."""

    view: View  # its first window
    scores: Tensor  # (A, K, rows read, Wr) summed over its windows
    counts: Tensor  # (rows read, Wr)


class ScoreAverage:
    """The running average of class scores over views, for some rows of an image.

    Views come in the order of `generators.views`: the windows of a frame one after the other, its top left one first.
    Beside the average it holds the sum of the windows of one frame, if there are any, and temporaries within a budget.
    """

    def __init__(
        self, protocol: str, original: Size, rows: tuple[int, int] | None = None, budget_bytes: int = BUDGET
    ) -> None:
        """
        Args:
            protocol: one of `config.choices.PROTOCOLS`.
            original: (H0, W0).
            rows: the half-open range of rows to make; None = all.
            budget_bytes: limit for temporaries; at least one row is made at a time.
        """
        self.protocol, self.original, self.budget = protocol, original, budget_bytes
        self.start, self.stop = rows or (0, original[0])
        self._averages_softmax = protocol in ("mmseg0", "mmseg1")
        self.frames = 0  # that are part of the sum
        self._sum: Tensor | None = None  # (A, K, rows, W0) over frames
        self._some = np.zeros(0, bool)  # (A,) whether any view has a class
        self._frame: _Frame | None = None  # frame whose windows are being added

    def add(self, mask_logits: Tensor, probs: Tensor, view: View) -> None:
        """Add a view; its arguments are those of a `ScoredView`.

        Raises:
            UsageError: unknown protocol.
            IncompatibleError: shapes disagree, or the view does not belong to the open frame.
        """
        check_scored(mask_logits, probs, view, self.protocol)
        if view.original != self.original:
            raise IncompatibleError(f"a view of an image of {view.original} pixels, not of {self.original}")
        probs = probs.to(mask_logits.device, torch.float32)
        if self._sum is None:
            shape = len(probs), probs.shape[2], self.stop - self.start, self.original[1]
            self._sum = torch.zeros(shape, device=mask_logits.device)
            self._some = np.zeros(len(probs), bool)
        self._some |= has_class(probs)
        tile = band_rows(mask_logits, probs, view, self.budget)
        if view.window is None:
            self._close()
            self._begin_frame(self._sum)
            for start in range(self.start, self.stop, tile):
                stop = min(start + tile, self.stop)
                for alpha, scores in enumerate(self._whole(mask_logits, probs, view, start, stop)):
                    self._put(self._sum[alpha], scores, start, stop)
            self.frames += 1
            return
        if view.seen[:2] == (0, 0):
            self._close()
            self._open(view, probs)
        frame = self._frame
        if frame is None or (view.resized, view.flip) != (frame.view.resized, frame.view.flip):
            raise IncompatibleError("a window without the top left one of its frame before it")
        self._add_window(frame, mask_logits, probs, view, tile)

    def scores(self) -> Tensor:
        """(A, K, rows, W0) float32: the mean over the views so far. Raises IncompatibleError when there is none."""
        self._close()
        if self._sum is None:
            raise IncompatibleError("no views to average")
        return self._sum / self.frames

    def labels(self) -> np.ndarray:
        """(A, rows, W0) int16: the argmax of `scores`, ties to the lowest class; IGNORE where no view has a class."""
        self._close()
        if self._sum is None:
            raise IncompatibleError("no views to average")
        maps = [argmax(s.flatten(1).T.contiguous()).reshape(s.shape[1:]).astype(np.int16) for s in self._sum]
        return np.where(self._some[:, None, None], np.stack(maps), np.int16(IGNORE))

    def _open(self, view: View, probs: Tensor) -> None:
        first, last = lerp(view.resized[0], view.original[0]).source(self.start, self.stop)
        scores = probs.new_zeros((len(probs), probs.shape[2], last - first, view.resized[1]))
        self._frame = _Frame(view, scores, probs.new_zeros((last - first, view.resized[1])))

    def _add_window(self, frame: _Frame, mask_logits: Tensor, probs: Tensor, view: View, tile: int) -> None:
        first, last = lerp(view.resized[0], view.original[0]).source(self.start, self.stop)
        top, left, height, width = view.seen
        columns = slice(left, left + width)
        for start in range(max(first, top), min(last, top + height), tile):
            stop = min(start + tile, last, top + height)
            rows = slice(start - first, stop - first)
            found = seen_scores(mask_logits, probs, view, self.protocol, start - top, stop - top)
            for alpha, scores in enumerate(found):
                frame.scores[alpha, :, rows, columns] += scores
            frame.counts[rows, columns] += 1

    def _whole(self, mask_logits: Tensor, probs: Tensor, view: View, start: int, stop: int) -> Iterator[Tensor]:
        """(K, stop − start, W0) of each α, of a view without window."""
        if self.protocol in ("d2", "mmdet"):
            masks = image_logit_band(mask_logits, view, start, stop).sigmoid_()
            for p in probs:
                yield (p.T @ masks.flatten(1)).reshape(-1, *masks.shape[1:])
            return
        first, last = lerp(view.resized[0], view.original[0]).source(start, stop)
        for scores in seen_scores(mask_logits, probs, view, self.protocol, first, last):
            yield _at_image(scores, view, first, start, stop)

    def _close(self) -> None:
        """Add the frame whose windows are open to the sum."""
        if self._frame is None or self._sum is None:
            return
        self._begin_frame(self._sum)
        view, sums, counts = self._frame
        rows = lerp(view.resized[0], view.original[0])
        begin, _ = rows.source(self.start, self.stop)
        read = max(view.resized[1], view.original[1]) * max(1.0, view.resized[0] / view.original[0])
        tile = max(1, int(self.budget / (16 * self._sum.shape[1] * read)))
        for start in range(self.start, self.stop, tile):
            stop = min(start + tile, self.stop)
            first, last = rows.source(start, stop)
            for total, windows in zip(self._sum, sums, strict=True):
                scores = windows[:, first - begin : last - begin] / counts[first - begin : last - begin]
                self._put(total, _at_image(scores, view, first, start, stop), start, stop)
        self.frames += 1
        self._frame = None

    def _begin_frame(self, totals: Tensor) -> None:
        """A single frame stays as it is; with a second one the first, too, counts by its softmax."""
        if self._averages_softmax and self.frames == 1:
            for scores in totals:
                scores.copy_(scores.softmax(0))

    def _put(self, total: Tensor, scores: Tensor, start: int, stop: int) -> None:
        if self._averages_softmax and self.frames:
            scores = scores.softmax(0)
        total[:, start - self.start : stop - self.start] += scores


def _at_image(scores: Tensor, view: View, first: int, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of the original image from the rows `first` … of the resized one that they read."""
    scores = scores.flip(-1) if view.flip else scores
    if view.resized == view.original:
        return scores
    rows = lerp(view.resized[0], view.original[0])
    return resize_band(scores, first, rows, start, stop, view.original[1])


def averaged_label_maps(views: Sequence[ScoredView], protocol: str, budget_bytes: int = BUDGET) -> np.ndarray:
    """The argmax over classes of the average of views, made in bands of rows; ties to the lowest class.

    Args:
        views: all views of an image, in the order of `generators.views`; masks may be float16.
        protocol: one of `config.choices.PROTOCOLS`.
        budget_bytes: limit for temporaries, beyond the arguments and the result; at least one row is made at a time.
    Returns:
        (A, H0, W0) int16 class indices; IGNORE all over where no view has a class.
    Raises:
        UsageError, IncompatibleError: as `ScoreAverage`.
    """
    if len(views) == 1 and views[0].view.whole:
        return semantic_label_maps(*views[0], protocol, budget_bytes)
    if not views:
        raise IncompatibleError("no views to average")
    height, width = views[0].view.original
    band = min(_average_rows(v, budget_bytes) for v in views)
    bands = []
    for start in range(0, height, band):
        average = ScoreAverage(protocol, (height, width), (start, min(start + band, height)), budget_bytes // 2)
        for view in views:
            average.add(*view)
        bands.append(average.labels())
    return np.concatenate(bands, 1)


def _average_rows(scored: ScoredView, budget_bytes: int) -> int:
    """Rows of the original whose average and open frame stay within half the budget, but on a CPU no more than its
    caches like: see `semantic.band_rows`.
    """
    alphas, _, classes = scored.probs.shape
    view = scored.view
    frame = view.resized[1] * max(1.0, view.resized[0] / view.original[0]) if view.window else 0
    rows = int(budget_bytes / 2 / (4 * alphas * classes * (view.original[1] + frame)))
    return max(1, min(rows, band_rows(scored.mask_logits, scored.probs, view, budget_bytes // 2)))
