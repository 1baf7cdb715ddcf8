"""Statistics of the stored scores and masks: confidence and area."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.pixel_groups import PixelGroups
from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.evaluation.point_scores import open_scores
from vitp_pipeline.execution.prefetch import Prefetcher
from vitp_pipeline.figure import DASH, plain
from vitp_pipeline.geometry import View
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation
from vitp_pipeline.runtime.progress import progress

if TYPE_CHECKING:
    from vitp_pipeline.postprocess.segmenter import FusedView

AREA_EDGES = (0.0, 0.002, 0.01, 0.05, 0.2, 1.0)
WORKERS = min(4, os.cpu_count() or 1)
"""Threads that compute beside the one that reads; each uses one core and holds one image."""
CONFIDENCE_EDGES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class MaskFacts:
    """The masks with 1 − v > 0.5 that are stored, of all images in order. Arrays of length M unless said otherwise.

    Attributes:
        image: number of the image, as in the rows.
        query: which query of the generator.
        label: the majority ground-truth class, or IGNORE.
        area: share of the image inside {logit > 0}, in [0, 1].
        predicted: per source of class scores (`Evaluation.classified_by`), class indices.
        confidence: per source, the probability of that class given that the mask is an object, in [0, 1].
        uncertainty: (images,) mean entropy of the headline's prediction, in [0, 1] where 1 is "any class"; weighted by
            area · (1 − v); nan where there is no mask.
    """

    image: np.ndarray
    query: np.ndarray
    label: np.ndarray
    area: np.ndarray
    predicted: dict[str, np.ndarray]
    confidence: dict[str, np.ndarray]
    uncertainty: np.ndarray

    def right(self, source: str) -> np.ndarray:
        """(M,) bool: the predicted class is the majority ground-truth class."""
        return np.asarray(self.predicted[source] == self.label)

    @property
    def known(self) -> np.ndarray:
        """(M,) bool: the mask has a majority ground-truth class."""
        return np.asarray(self.label != IGNORE)


def alphas_of(stored: StoredEvaluation) -> dict[str, float]:
    """The weight of the classifier in each source of class scores."""
    alphas = {"generator": 0.0, "classifier": 1.0, "fused": stored.evaluation.alpha}
    return {name: alphas[name] for name in stored.evaluation.classified_by}


def scored(stored: StoredEvaluation, record: ProposalRecord, point_logits: np.ndarray | None) -> FusedView:
    """Score a view by every source; `point_logits` are (Q, K), None without a classifier."""
    return stored.evaluation.segmenter.score(record, point_logits, list(alphas_of(stored).values()))


def class_scores(stored: StoredEvaluation, view: FusedView) -> dict[str, np.ndarray]:
    """Per source (Q, K) float64 class probabilities given that the mask is an object: rows sum to 1, or to 0 where
    no class has any.

    Args:
        view: of `scored`.
    """
    probs = view.probs.double().cpu()
    total = probs.sum(2, keepdim=True)
    return dict(zip(alphas_of(stored), (probs / total).nan_to_num(0.0).numpy(), strict=True))


def objectness_of(class_logits: np.ndarray) -> np.ndarray:
    """(Q,) float64 1 − v."""
    y = class_logits.astype(np.float64)
    weights = np.exp(y - y.max(1, keepdims=True))
    return np.asarray(weights[:, :-1].sum(1) / weights.sum(1))


def mask_areas(masks: np.ndarray, view: View, groups: PixelGroups | None = None) -> np.ndarray:
    """(M,) share of the image inside {logit > 0}, counted at the resolution of the stored masks, or by groups of the
    image's pixels.
    """
    if groups is not None:
        inside = (groups.sizes[own].sum() for own in masks[:, 0] > 0)
        return np.asarray(np.fromiter(inside, np.float64, len(masks)) / groups.sizes.sum())
    height, width = (max(1, round(m * r / p)) for m, r, p in zip(view.mask, view.resized, view.padded, strict=True))
    return np.asarray((masks[:, :height, :width] > 0).mean((1, 2), dtype=np.float64))


def read_masks(stored: StoredEvaluation) -> MaskFacts:
    """Compute the statistics in one pass over the stored parts. Raises CorruptError where a part is damaged."""
    number = {image: i for i, image in enumerate(stored.rows.images)}
    failed = {image for image, _ in stored.rows.failed}
    known, first = _labels(stored)
    proposals, stored_scores = stored.evaluation.proposals, stored.evaluation.class_scores
    sources = stored.evaluation.classified_by
    uncertainty = np.full(len(number), np.nan)
    pieces: list[tuple[np.ndarray, ...]] = []

    def stored_images() -> Iterator[tuple[ProposalRecord, np.ndarray | None]]:
        for shard in range(proposals.run.shards):
            if shard in stored.rows.missing:
                continue
            for part in range(len(proposals.run.parts(shard))):
                with open_scores(proposals, stored_scores, shard, part) as scores:
                    for record in proposals.read_part(shard, part, grouped=True):
                        if record.image_id not in failed:
                            yield record, scores.of(record)

    def facts(item: tuple[ProposalRecord, np.ndarray | None]) -> tuple[tuple[np.ndarray, ...], float]:
        record, logits = item
        return _facts(record, class_scores(stored, scored(stored, record, logits)))

    with (
        progress("reading masks", len(number) - len(failed)) as shown,
        Prefetcher(facts, stored_images(), WORKERS, WORKERS) as found_facts,
    ):
        for (record, _), found in found_facts:
            image = number[record.image_id]
            piece, uncertainty[image] = found.result()
            query = piece[0]
            own = dict(known[first[image] : first[image + 1]].tolist())
            label = [own.get(q, IGNORE) for q in query.tolist()]
            pieces.append((np.full(len(query), image), *piece, np.array(label, np.int64)))
            shown.advance()
    count = len(sources)
    empty = (np.zeros(0, int),) * (4 + 2 * count)
    images, queries, areas, *columns, majority = map(np.concatenate, zip(*(pieces or [empty]), strict=True))
    predicted, confidence = (
        dict(zip(sources, columns[:count], strict=True)),
        dict(zip(sources, columns[count:], strict=True)),
    )
    return MaskFacts(images, queries, majority, areas, predicted, confidence, uncertainty)


def _facts(record: ProposalRecord, scores: dict[str, np.ndarray]) -> tuple[tuple[np.ndarray, ...], float]:
    objectness = objectness_of(record.class_logits)[record.kept]
    likely = objectness > 0.5
    query = record.kept[likely]
    area = mask_areas(record.masks[likely], record.view, record.groups)
    of = [values[query] for values in scores.values()]
    headline, weight = of[-1], area * objectness[likely]
    entropy = -np.sum(headline * np.log(np.where(headline > 0, headline, 1.0)), 1) / np.log(max(2, headline.shape[1]))
    uncertain = float((entropy * weight).sum() / weight.sum()) if weight.sum() else float("nan")
    return (query.astype(np.int64), area, *(p.argmax(1) for p in of), *(p.max(1) for p in of)), uncertain


def _labels(stored: StoredEvaluation) -> tuple[np.ndarray, np.ndarray]:
    """(M, 2) query and majority ground-truth class of the masks in the rows; (images + 1,) where each image's begin."""
    masks = stored.rows.columns["masks"]
    first = np.searchsorted(masks["image"], np.arange(len(stored.rows.images) + 1))
    return np.stack([masks["query"], masks["label"]], 1), first


def reliability(facts: MaskFacts, bins: int = 10) -> dict[str, dict[str, Any]]:
    """Per source: masks of known label in bins of equal width by confidence.

    Returns:
        {count, confidence, right: lists of `bins`, None where a bin is empty; ece: expected calibration error,
        or None without masks}
    """
    found = {}
    for name in facts.confidence:
        confidence, right = facts.confidence[name][facts.known], facts.right(name)[facts.known]
        place = np.minimum((confidence * bins).astype(int), bins - 1)
        count = np.bincount(place, minlength=bins)
        means = [np.bincount(place, values, minlength=bins) for values in (confidence, right)]
        mean_confidence, mean_right = (np.divide(m, count, out=np.full(bins, np.nan), where=count > 0) for m in means)
        gap = np.abs(means[0] - means[1]).sum() / len(confidence) if len(confidence) else np.nan
        found[name] = {
            "count": count.tolist(),
            "confidence": plain(mean_confidence),
            "right": plain(mean_right),
            "ece": plain(gap),
        }
    return found


def help_and_harm(facts: MaskFacts, pixels: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Count the masks of known class that fusion corrected, and those that it made wrong.

    Args:
        pixels: (K,) ground-truth pixels of every class.
    Returns:
        per question ("area", "confidence", "frequency") its bins: {bin, masks, righted, wronged, before, after}; counts
        of masks, before and after being those classified correctly. Nothing where nothing was fused.
    """
    if "fused" not in facts.predicted:
        return {}
    known = facts.known
    area, confidence = facts.area[known], facts.confidence["generator"][known]
    rank, groups = frequency_groups(pixels)
    questions = {
        "area": (_place(area, AREA_EDGES), _ranges(AREA_EDGES)),
        "confidence": (_place(confidence, CONFIDENCE_EDGES), _ranges(CONFIDENCE_EDGES)),
        "frequency": (rank[facts.label[known]], groups),
    }
    before, after = facts.right("generator")[known], facts.right("fused")[known]
    found: dict[str, list[dict[str, Any]]] = {}
    for question, (place, names) in questions.items():
        found[question] = []
        for i, name in enumerate(names):
            b, a = before[place == i], after[place == i]
            counts = {"masks": len(b), "righted": int((a & ~b).sum()), "wronged": int((b & ~a).sum())}
            found[question].append({"bin": name, **counts, "before": int(b.sum()), "after": int(a.sum())})
    return found


def frequency_groups(pixels: np.ndarray, groups: int = 5) -> tuple[np.ndarray, list[str]]:
    """Fifths of the classes by their share of the ground truth, rarest first.

    Returns:
        ((K,) group of every class that the ground truth has, else 0; the groups' names: their shares of the pixels)
    """
    present = np.flatnonzero(pixels > 0)
    order = present[np.argsort(pixels[present], kind="stable")]
    groups = max(1, min(groups, len(order)))
    group = np.zeros(len(pixels), int)
    group[order] = np.arange(len(order)) * groups // max(1, len(order))
    total, names = max(1, pixels.sum()), []
    for i in range(groups):
        members = order[group[order] == i]
        span = [f"{100 * pixels[k] / total:.2g}" for k in (members[:1].tolist() + members[-1:].tolist())]
        names.append(f"{'–'.join(dict.fromkeys(span))} %" if span else DASH)
    return group, names


def _place(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def _ranges(edges: tuple[float, ...]) -> list[str]:
    return [f"{100 * low:g}–{100 * high:g} %" for low, high in pairwise(edges)]
