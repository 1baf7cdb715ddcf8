"""The top of a report: what was run, what came out, whether the difference is real, and where to look."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import UserError
from vitp_pipeline.evaluation.run_labels import classifier_folder
from vitp_pipeline.evaluation.summary import RESAMPLES
from vitp_pipeline.figure import Figure, difference, falling, percent
from vitp_pipeline.metrics.bootstrap import SINGLE, paired_difference, pixel_accuracy
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, classifier_name
from vitp_pipeline.report.page import points
from vitp_pipeline.report.paired import mask_counts, panoptic_areas, panoptic_quality
from vitp_pipeline.report.task_bars import task_bars
from vitp_pipeline.storage.sealed import read_sealed

FEW = 30
"""Below so many images a percentile interval over images tends to be too narrow, and the page says so."""
MOST = 5
"""Classes and images of a kind that are listed."""
BETTER, WORSE, OPEN = "better", "worse", "open"


@dataclass(frozen=True)
class Outcome:
    """A metric before and after fusion.

    Attributes:
        metric: "PQ", "AP", "mIoU" or "mask accuracy".
        before, after: of the generator and the fused prediction, in [0, 1]; without fusion `before` is None.
        interval: 95 % of the resamples of the images, of the difference or, without fusion, of the metric; None where
            there is none.
        bound: the upper bound (point labels).
    """

    metric: str
    before: Figure
    after: Figure
    interval: tuple[float, float] | None
    bound: Figure

    @property
    def gain(self) -> Figure:
        return None if self.before is None else difference(self.after, self.before)

    @property
    def verdict(self) -> str:
        """BETTER or WORSE where the interval of the difference excludes 0, OPEN where it does not, else ""."""
        if self.before is None or self.interval is None:
            return ""
        low, high = self.interval
        return BETTER if low > 0 else WORSE if high < 0 else OPEN


def outcomes(stored: StoredEvaluation) -> list[Outcome]:
    """Return the first metric of every task, as in the paper's Figure 1, and the mask classification accuracy."""
    fuses, own = stored.evaluation.fuses, stored.evaluation.compared[-1]
    found = []
    for bars in task_bars(stored):
        before = bars.values["generator"] if fuses else None
        interval = _interval(stored, bars.metric)
        found.append(Outcome(bars.metric, before, bars.values[own], interval, bars.values["upper_bound_point"]))
    masks = stored.result["masks"]
    if masks["matched"]:
        shares, by = masks["mask_accuracy"], stored.evaluation.classified_by[-1]
        interval = _interval(stored, "mask accuracy")
        found.append(Outcome("mask accuracy", shares["generator"] if fuses else None, shares[by], interval, None))
    return found


def _interval(stored: StoredEvaluation, metric: str) -> tuple[float, float] | None:
    """The interval of the difference; mIoU's is the one that `vitp evaluate` prints."""
    fuses, rows = stored.evaluation.fuses, stored.rows
    if metric == "mIoU":
        resampled = stored.result["semantic"]["bootstrap"]
        ends = resampled["gain_mIoU"]["interval"] if fuses else resampled[f"{stored.evaluation.compared[-1]}_mIoU"]
        return None if None in ends else (ends[0], ends[1])
    failed = {image for image, _ in rows.failed}
    images = np.array([number for number, image in enumerate(rows.images) if image not in failed], int)
    if metric == "AP" or not fuses or not 0 < len(images) <= SINGLE:
        return None
    counts, figure = (panoptic_areas, panoptic_quality) if metric == "PQ" else (mask_counts, pixel_accuracy)
    before, after = (counts(stored, variant)[images] for variant in ("generator", "fused"))
    gain = paired_difference(before, after, figure, RESAMPLES)
    return (gain.low, gain.high) if np.isfinite([gain.low, gain.high]).all() else None


def tiles(found: Sequence[Outcome], own: str) -> list[dict[str, str]]:
    """Return what the page says of every outcome: name, value, gain and its interval, verdict, bound.

    Args:
        own: the variant of `Outcome.after`.
    """
    said = {
        BETTER: "better: the interval lies above 0",
        WORSE: "worse: the interval lies below 0",
        OPEN: "open: the interval holds 0",
        "": "",
    }
    shown = []
    for outcome in found:
        alone = outcome.before is None
        value = percent(outcome.after)
        span = (
            "" if outcome.interval is None else "{} to {}".format(*map(percent if alone else points, outcome.interval))
        )
        shown.append(
            {
                "name": f"{outcome.metric}, {own}" if alone else f"{outcome.metric}, generator → {own}",
                "value": value if alone else f"{percent(outcome.before)} → {value}",
                "gain": "" if alone else f"{points(outcome.gain)} points",
                "interval": f"95 % of resamples: {span}" if span else "",
                "verdict": said[outcome.verdict],
                "kind": {BETTER: "up", WORSE: "down"}.get(outcome.verdict, "alike"),
                "bound": "" if outcome.bound is None else f"upper bound (point labels) {percent(outcome.bound)}",
            }
        )
    return shown


def verdict(found: Sequence[Outcome], images: int) -> list[str]:
    """Say in sentences what fusion changed and whether the images suffice to tell."""
    sentences = []
    by_kind = {
        kind: [o for o in found if o.verdict == kind and o.metric != "mask accuracy"] for kind in (BETTER, WORSE, OPEN)
    }
    for kind, word in ((BETTER, "raises"), (WORSE, "lowers")):
        if by_kind[kind]:
            listed = " and ".join(
                f"{o.metric} by {percent(abs(o.gain or 0.0))} points, from {percent(o.before)} to {percent(o.after)}"
                for o in by_kind[kind]
            )
            sentences.append(f"Fusion {word} {listed}. Another choice of images would hardly turn that round.")
    if by_kind[OPEN]:
        listed = " and ".join(f"{o.metric} ({points(o.gain)})" for o in by_kind[OPEN])
        sentences.append(f"These images do not show whether fusion changes {listed}: the interval holds 0.")
    if any(o.interval for o in found):
        few = f" Only {images} images were measured: such intervals are rather too narrow." if images < FEW else ""
        sentences.append(
            "An interval holds 95 % of 1,000 resamples of the images, generator and fused seeing the same ones."
            f" It does not cover the seed of a training.{few}"
            if any(o.verdict for o in found)
            else f"The interval holds 95 % of 1,000 resamples of the images.{few}"
        )
    return sentences


def about_run(stored: StoredEvaluation) -> list[tuple[str, str]]:
    """Return what was run, as terms and texts: data, generator, classifier, fusion."""
    evaluation, result = stored.evaluation, stored.result
    proposals, images = evaluation.proposals.run, result["images"]
    measured = f"{images['measured']:,} images"
    if images["measured"] < images["of"]:
        measured = f"{images['measured']:,} of {images['of']:,} images"
    data = f"{result['provenance']['dataset']}, split {result['provenance']['split']}"
    found = [("Data", f"{data}: {measured}, {len(stored.classes)} classes"), ("Masks from", generator_name(proposals))]
    if evaluation.class_scores is not None:
        found.append(("Masks classified by", f"{classifier_name(stored)}{_network(stored)}"))
    if evaluation.fuses:
        found.append(
            (
                "Fused with",
                f"α = {evaluation.alpha:g} (0 is the generator alone, 1 the classifier alone)"
                f", formula {evaluation.settings.formula}",
            )
        )
    return found


def generator_name(proposals: StageRun) -> str:
    """Name the generator: as its stage noted, else by the recipe of its command, which older runs note."""
    if noted := str(proposals.provenance.get("generator", "")):
        return noted.removesuffix(".py")
    generator = proposals.identity.get("generator", {})
    if isinstance(generator, dict) and generator.get("library") == "imported":
        return f"another tool (imported as {generator.get('format', 'masks')})"
    words = proposals.provenance.get("command", "").split()
    after = words[words.index("generate-proposals") + 1 :] if "generate-proposals" in words else []
    return f"the generator of the recipe {after[0]}" if after and not after[0].startswith("-") else "a generator"


def _network(stored: StoredEvaluation) -> str:
    """Backbone, input size and points of the classifier, as far as the run knows them."""
    scores = stored.evaluation.class_scores
    assert scores is not None
    said = ""
    if (folder := classifier_folder(stored.store, scores.identity["classifier"])) is not None:
        with suppress(UserError, KeyError):  # a run may have lost it; nothing else on the page needs it
            model = read_sealed(stored.store.fetch(folder / "model.json"))["model"]
            said = f": {model['backbone']}, input {' × '.join(map(str, model['image_size']))}"
    return f"{said}, at the point “{stored.evaluation.run.identity['points']}” of each"


def changed_classes(
    stored: StoredEvaluation, measures: dict[str, dict[str, list[Any]]], cards: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """{measure, gained, lost}: the classes that fusion changed most, each {name, index, change, images}, `images` being
    how many of the cards show the class; none without fusion.
    """
    if not measures or not stored.evaluation.fuses:
        return {"measure": "", "gained": [], "lost": []}
    measure, values = next(iter(measures.items()))
    shown = images_of_classes(len(stored.classes), cards)
    changes: list[dict[str, Any]] = [
        {"name": name, "index": k, "change": difference(after, before), "images": shown[k]}
        for k, (name, before, after) in enumerate(
            zip(stored.classes, values["generator"], values["fused"], strict=True)
        )
    ]
    order = falling([row for row in changes if row["change"] is not None], lambda row: row["change"])
    return {
        "measure": measure,
        "gained": [row for row in order if row["change"] > 0][:MOST],
        "lost": [row for row in reversed(order) if row["change"] < 0][:MOST],
    }


def changed_images(cards: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Kind of card → its first ones, {card, name, change}: the number of the card, and what fusion changed or, without
    fusion, None.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for number, card in enumerate(cards):
        entry = {"card": number, "name": card["name"], "change": difference(card["after"], card["before"])}
        found.setdefault(card["kind"], []).append(entry)
    return {kind: rows[:MOST] for kind, rows in found.items() if kind != "uncertain"}


def images_of_classes(classes: int, cards: Sequence[dict[str, Any]]) -> list[int]:
    """Count the cards that show each class."""
    counts = np.zeros(classes, int)
    for card in cards:
        counts[card["classes"]] += 1
    return [int(count) for count in counts]
