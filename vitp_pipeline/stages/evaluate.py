"""Stage four: fuse the scores, build the maps, measure. A pure function of what is stored and of the ground truth.

Every image yields one row of counts (sparse confusion, panoptic matches, named masks) per variant; figures are
sums over rows in the manifest's order, so no split into shards can change them. A variant is a way to name the masks:

    alpha:A        both scores fused with weight A; alpha:0 is the generator alone, alpha:1 the classifier alone
    alpha_by_class, alpha_by_score    the headline, where α differs between classes, or between masks by 1 − v
    bound_point    named by the ground truth at the mask's point (paper Table 5)
    bound_mask     named by the majority of the ground truth inside the mask

Several views of an image (docs/views.md) are fused one by one, then their class scores are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.codec import MaskCodec
from vitp_pipeline.artifacts.parts import ArrayReader, arrays_path, index_path, read_index
from vitp_pipeline.artifacts.proposals import (
    SEVERAL_POINTS,
    ProposalRecord,
    ProposalStore,
    by_image,
    open_proposals,
    points_of,
)
from vitp_pipeline.artifacts.run import StageRun, create_or_check
from vitp_pipeline.datasets import IGNORE, Dataset
from vitp_pipeline.datasets.components import component_segments
from vitp_pipeline.errors import InputError, MissingStageError, UsageError
from vitp_pipeline.fingerprint import fingerprint, identity_of
from vitp_pipeline.geometry import Size
from vitp_pipeline.recipe import ClassifySettings, EvaluateSettings, Recipe
from vitp_pipeline.shard import ShardChoice
from vitp_pipeline.stages.certain import certain_pixels, check_codec, check_ring
from vitp_pipeline.stages.classify import (
    check_manifest,
    classes_run,
    classifier_file,
    require_proposals,
    require_shards,
)
from vitp_pipeline.stages.counts import counts_table, sparse_confusion
from vitp_pipeline.stages.driver import Outcome, run_parts
from vitp_pipeline.stopping import stop_wanted

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from vitp_pipeline.assemble.average import ScoredView

GENERATE = "generate-proposals"
BOUNDS = ("bound_point", "bound_mask")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's folder and what its rows mean. `alphas` are sorted and hold 0, 1 and the headline α.

    `proposals` and `classes` are None for one that keeps neither (`stages.stream`).
    """

    run: StageRun
    proposals: ProposalStore | None
    classes: StageRun | None
    dataset: Dataset
    alphas: tuple[float, ...]
    alpha: float
    alpha_classes: tuple[float, ...] = ()
    alpha_scores: tuple[float, float] | None = None
    settings: EvaluateSettings = field(default_factory=EvaluateSettings)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of what there is of the stages."""
        kept = {"proposals": self.proposals.run, "classes": self.classes} if self.proposals else {}
        return {name: run.fingerprint for name, run in {**kept, "evaluation": self.run}.items()}

    @property
    def codec(self) -> MaskCodec:
        """What of the masks it could read."""
        return self.proposals.codec if self.proposals else MaskCodec.said_by(self.run.identity["stream"][GENERATE])

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is measured: without segments in the ground truth, no panoptic maps."""
        segments = self.dataset.has_segments or self.settings.components
        return tuple(t for t in self.settings.tasks if segments or t != "panoptic")

    @property
    def variants(self) -> tuple[str, ...]:
        scalars = tuple(variant_of(a) for a in self.alphas)
        return (*scalars, *(() if self.headline in scalars else (self.headline,)), *BOUNDS)

    @property
    def headline(self) -> str:
        """The variant that is reported as fused."""
        if self.alpha_classes:
            return "alpha_by_class"
        return "alpha_by_score" if self.alpha_scores else variant_of(self.alpha)

    def headline_alpha(self, class_logits: torch.Tensor) -> float | torch.Tensor:
        """The α of the headline for the queries of an image, as `fuse` takes it."""
        import torch

        from vitp_pipeline.fusion import alpha_by_score

        if self.alpha_classes:
            return torch.tensor([self.alpha_classes], dtype=torch.float64)
        return alpha_by_score(class_logits, *self.alpha_scores) if self.alpha_scores else self.alpha


def variant_of(alpha: float) -> str:
    return f"alpha:{alpha + 0.0:.12g}"  # + 0.0: there is no −0


def parse_alphas(text: str) -> tuple[float, ...]:
    """`0.4`, `0,0.4,1`, or `first:last:step` with `last` when a step meets it.

    Raises:
        UsageError: outside [0, 1], or another form.
    """
    try:
        if ":" in text:
            first, last, step = (float(x) for x in text.split(":"))
            if step <= 0 or last < first:
                raise ValueError
            count = int((last - first) / step + 1e-9) + 1
            if count > 1001:
                raise ValueError
            values = [round(first + i * step, 10) for i in range(count)]
        else:
            values = [float(x) for x in text.split(",")]
    except (ValueError, OverflowError):
        raise UsageError(
            f"--alpha {text!r} is neither a number nor first:last:step (at most 1001 values)", "Like 0.4 or 0:1:0.1"
        ) from None
    for value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"--alpha {text}: α = {value:g} is outside [0, 1]")
    return tuple(values)


def prepare(
    recipe: Recipe,
    settings: EvaluateSettings,
    classify: ClassifySettings,
    sweep: Sequence[float],
    data_root: Path,
    out: Path,
    shard: ShardChoice,
) -> Evaluation:
    """Finds what is to be evaluated and makes the evaluation's folder.

    Args:
        sweep: further values of α, measured beside the headline's.
    Raises:
        MissingStageError: proposals or scores are not there.
        UserError: any of its other kinds.
    """
    proposals = open_proposals(out)
    check_manifest(proposals, recipe)
    require_shards(proposals, shard)
    classes = classes_run(proposals, classifier_file(recipe, classify, data_root, out), classify, out)
    dataset = Dataset(recipe.manifest, data_root, proposals.run.identity["settings"].get("split", "val"))
    check_tasks(settings, dataset)
    measured = Measured.of(recipe, settings, classify, sweep, data_root)
    identity = {
        "stage": "evaluation",
        "proposals": proposals.run.fingerprint,
        "classes": classes.fingerprint,
        **measured.identity,
    }
    folder = out / "evaluation" / fingerprint(identity)[:12]
    run = create_or_check(folder, identity, proposals.run.images, proposals.run.shards, proposals.run.part_size)
    evaluation = measured.evaluation(run, proposals, classes, dataset)
    check_codec(evaluation.codec, settings, evaluation.tasks)
    if proposals.several_views:
        check_views(evaluation)
    return evaluation


@dataclass(frozen=True)
class Measured:
    """What an evaluation measures, wherever the scores come from."""

    settings: EvaluateSettings
    points: str
    alphas: tuple[float, ...]
    by_class: dict[str, float]
    by_score: tuple[float, float] | None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        settings: EvaluateSettings,
        classify: ClassifySettings,
        sweep: Sequence[float],
        data_root: Path,
    ) -> Measured:
        """Raises what `headline_rule` raises."""
        by_class, by_score = headline_rule(recipe, settings, data_root)
        alphas = tuple(sorted({0.0, 1.0, settings.alpha, *sweep}))
        return cls(settings, classify.points, alphas, by_class, by_score)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "settings": identity_of(self.settings),
            "points": self.points,
            "alphas": list(self.alphas),
            **({"alpha_classes": self.by_class} if self.by_class else {}),
        }

    def evaluation(
        self, run: StageRun, proposals: ProposalStore | None, classes: StageRun | None, dataset: Dataset
    ) -> Evaluation:
        by_class = tuple(self.by_class.values())
        alpha, settings = self.settings.alpha, self.settings
        return Evaluation(run, proposals, classes, dataset, self.alphas, alpha, by_class, self.by_score, settings)


def check_views(evaluation: Evaluation) -> None:
    """Raises UsageError when figures are asked for that several views of an image have not."""
    if evaluation.settings.certain:
        raise UsageError("certain = true needs one view of an image", "Leave it out of [evaluate]")
    if others := [task for task in evaluation.tasks if task != "semantic"]:
        raise UsageError(
            f"{' and '.join(others)} figures need one view of an image: only semantic scores are averaged",
            'Set tasks = ["semantic"] in [evaluate], or generate proposals without scales, mirror and window',
        )


def check_tasks(settings: EvaluateSettings, dataset: Dataset) -> None:
    """Raises UsageError when the dataset has no ground truth for a task that was asked for."""
    if dataset.has_segments or settings.components:
        return
    if "instance" in settings.tasks or "semantic" not in settings.tasks:
        raise UsageError(
            f"tasks = {list(settings.tasks)}: the labels of {dataset.spec.name!r} have no segments",
            "components = true takes connected pieces of the things' classes for instances",
        )


def headline_rule(
    recipe: Recipe, settings: EvaluateSettings, data_root: Path
) -> tuple[dict[str, float], tuple[float, float] | None]:
    """(α of every class, or nothing; α of masks with 1 − v = 0 and with 1, or None): at most one of both.

    Raises:
        UsageError: both are asked for, or an α per class with a formula under which dropped masks could matter.
        InputError: the file of class α cannot be read.
    """
    from vitp_pipeline.alphas import read_alphas

    low, high = (settings.alpha if a < 0 else a for a in (settings.alpha_low, settings.alpha_high))
    by_score = (low, high) if settings.alpha_low >= 0 or settings.alpha_high >= 0 else None
    if not settings.alpha_classes:
        return {}, by_score
    if by_score:
        raise UsageError("alpha_classes and alpha_low or alpha_high exclude each other", "Give one of them")
    if settings.formula != "renormalised":
        raise UsageError(f'alpha_classes does not go with formula = "{settings.formula}"', 'Use "renormalised"')
    file = recipe.find_file(settings.alpha_classes, data_root)
    return read_alphas(file, recipe.manifest.class_names, settings.alpha), None


def evaluate_shards(
    evaluation: Evaluation,
    settings: EvaluateSettings,
    classify: ClassifySettings,
    shards: Sequence[int],
    retry_failed: bool = False,
) -> Outcome:
    """Measures the images of some shards.

    Raises:
        MissingStageError: a shard's proposals or scores are not finished.
    """
    require_proposals(evaluation.proposals, shards)
    if missing := [s for s in shards if not evaluation.classes.finished(s)]:
        raise MissingStageError(
            f"{evaluation.classes.folder}: shard {missing[0]} is not classified", "Run `vitp classify` for it first"
        )
    return run_parts(
        evaluation.run,
        shards,
        lambda: CountMaker(evaluation, settings, classify.points),
        "evaluate",
        retry_failed,
    )


@dataclass(frozen=True)
class NamedView:
    """A view's masks (M, h, w) on the device, which queries they are (M,), and under every variant probabilities of all
    queries (V, Q, K) and of no object (V, Q); the likely masks and what they are called.
    """

    record: ProposalRecord
    masks: torch.Tensor
    kept: torch.Tensor
    probs: torch.Tensor
    voids: torch.Tensor
    masks_named: dict[str, np.ndarray]

    @property
    def scored(self) -> ScoredView:
        from vitp_pipeline.assemble.average import ScoredView

        return ScoredView(self.masks, self.probs[:, self.kept], self.record.view)


class CountMaker:
    """Makes parts of an evaluation: one row of counts an image, no arrays."""

    def __init__(self, evaluation: Evaluation, settings: EvaluateSettings, policy: str) -> None:
        from vitp_pipeline.assemble.panoptic import PanopticRule
        from vitp_pipeline.devices import choose_device

        self.evaluation, self.settings, self.policy = evaluation, settings, policy
        self.device = choose_device(settings.device)
        self.things = np.asarray(evaluation.dataset.spec.things)
        self.rule = PanopticRule(settings.panoptic_rule, settings.object_threshold, settings.overlap_threshold)

    def make(
        self, shard: int, part: int, images: Sequence[str], arrays: Path, advance: Callable[[int], None]
    ) -> pa.Table:
        classes_folder = self.evaluation.classes.shard_folder(shard)
        states = {r["image_id"]: r for r in read_index(index_path(classes_folder, part)).to_pylist()}
        rows: dict[str, dict[str, Any]] = {}
        with ArrayReader(arrays_path(classes_folder, part)) as scores:
            for views in by_image(self.evaluation.proposals.read_part(shard, part, images=images)):
                image_id = views[0].image_id
                if rows and stop_wanted():
                    images = images[: images.index(image_id)]
                    break
                if states[image_id]["status"] == "ok":
                    named = ((record, scores.read(f"point_logits/{record.key}")) for record in views)
                    rows[image_id] = self.row(image_id, views[0].view.original, named)
                    advance(1)
        for image_id in images:
            if image_id not in rows:
                rows[image_id] = {"error": states[image_id]["error"]}
                advance(1)
        return counts_table(self.evaluation, [(image_id, rows[image_id]) for image_id in images])

    def row(
        self, image_id: str, size: Size, views: Iterable[tuple[ProposalRecord, np.ndarray]], keep_views: bool = True
    ) -> dict[str, Any]:
        """The counts of an image, or the error in its ground truth.

        Args:
            size: (H0, W0) of the image.
            views: proposals and (Q, K) point logits of its views.
            keep_views: False: only the running average of class scores is held, no view longer than its turn.
        """
        dataset = self.evaluation.dataset
        try:
            sample = dataset.sample(image_id)
            truth = dataset.read_semantic(sample)
            if truth.shape != size:
                height, width = size
                raise InputError(
                    f"{sample.label}: is {truth.shape[1]}×{truth.shape[0]}, its image {width}×{height}",
                    "Image and label must have the same size",
                )
            if dataset.has_segments:
                segments = dataset.read_panoptic(sample)
            else:
                segments = component_segments(truth, self.things) if self.settings.components else None
        except InputError as error:
            return {"error": error.message}
        return self._measure(views, truth, segments, keep_views)

    def _measure(
        self, views: Iterable[tuple[ProposalRecord, np.ndarray]], truth: np.ndarray, segments, keep_views: bool
    ) -> dict[str, Any]:
        from vitp_pipeline.assemble.average import ScoreAverage, averaged_label_maps

        tasks, average = self.evaluation.tasks, None
        kept: list[NamedView] = []
        masks: list[dict[str, np.ndarray]] = []
        for record, point_logits in views:
            if self.settings.protocol:
                record = replace(record, protocol=self.settings.protocol)
            named = self._name(record, point_logits, truth)
            masks.append(named.masks_named)
            if keep_views:
                kept.append(named)
                continue
            average = average or ScoreAverage(record.protocol, record.view.original)
            average.add(*named.scored)
        row: dict[str, Any] = {"masks": {name: np.concatenate([m[name] for m in masks]) for name in masks[0]}}
        if "semantic" in tasks:
            scored = [named.scored for named in kept]
            maps = average.labels() if average else averaged_label_maps(scored, kept[0].record.protocol)
            row["semantic"] = [sparse_confusion(m, truth, len(self.things)) for m in maps]
            if self.settings.certain:
                row["certain"] = self._certain(kept[0])
            if self.settings.boundary_iou:
                row["boundary"] = self._boundaries(maps, truth)
        return row | self._one_view_tasks(kept, truth, segments)

    def _one_view_tasks(self, views: Sequence[NamedView], truth: np.ndarray, segments) -> dict[str, Any]:
        """Instance and panoptic counts; `check_views` sees to it that they are asked of single views alone."""
        from vitp_pipeline.assemble.quality import mask_quality
        from vitp_pipeline.stages.instances import image_row

        row: dict[str, Any] = {}
        tasks = self.evaluation.tasks
        if not {"instance", "panoptic"} & set(tasks):
            return row
        (view,) = views
        record, masks = view.record, view.masks
        if "instance" in tasks:
            row |= image_row(record, masks, view.probs, segments, truth, self.things, self.settings)
        if "panoptic" in tasks and segments is not None:
            quality = mask_quality(masks, record.view, record.protocol) if self.settings.mask_quality else None
            probs, voids = view.probs[:, view.kept], view.voids[:, view.kept]
            row["panoptic"] = [
                self._panoptic(masks, p, v, record, segments, quality) for p, v in zip(probs, voids, strict=True)
            ]
        return row

    def _name(self, record: ProposalRecord, point_logits: np.ndarray, truth: np.ndarray) -> NamedView:
        """Names the masks of a view under every variant."""
        import torch

        from vitp_pipeline.assemble.labels import label_at_points, majority_label
        from vitp_pipeline.fusion import fuse, named_probs

        check_ring(record)
        masks = torch.from_numpy(record.masks).to(self.device)
        logits = torch.from_numpy(record.class_logits).to(self.device)
        scores = torch.from_numpy(point_logits).to(self.device)
        kept = torch.from_numpy(record.kept).long().to(self.device)
        policy = "max" if self.policy in SEVERAL_POINTS else self.policy  # the bound needs one point a mask
        by_point = label_at_points(truth, points_of(record, policy))
        by_mask = np.full(len(by_point), IGNORE, by_point.dtype)
        by_mask[record.kept] = majority_label(masks, record.view, truth)
        alphas: list[float | torch.Tensor] = list(self.evaluation.alphas)
        if self.evaluation.headline not in map(variant_of, self.evaluation.alphas):
            alphas.append(self.evaluation.headline_alpha(logits))
        named = [fuse(logits, scores, alpha, self.settings.formula) for alpha in alphas]
        void = logits.softmax(1)[:, -1]
        named += [(named_probs(logits, labels), void) for labels in (by_point, by_mask)]
        probs, voids = (torch.stack(values) for values in zip(*named, strict=True))
        found = self._named(probs.argmax(2).cpu().numpy(), void, by_mask)
        found["query"] = found["query"] + record.number * len(void)  # numbered on from view to view
        return NamedView(record, masks, kept, probs, voids, found)

    def _certain(self, view: NamedView) -> np.ndarray:
        """Of the headline: see `certain.FIELDS`."""
        number = self.evaluation.variants.index(self.evaluation.headline)
        found = certain_pixels(view.record, view.masks, view.probs[number], view.kept)
        return np.array([found.sum(), found.size])

    def _panoptic(
        self,
        masks: torch.Tensor,
        probs: torch.Tensor,
        void: torch.Tensor,
        record: ProposalRecord,
        segments,
        quality: torch.Tensor | None,
    ):
        from vitp_pipeline.assemble.panoptic import panoptic_map
        from vitp_pipeline.metrics.panoptic import count

        ids, found = panoptic_map(masks, probs, void, record.view, record.protocol, self.rule, self.things, quality)
        truth_ids, truth_segments = segments
        return count(ids, found, truth_ids, truth_segments, probs.shape[1])

    def _boundaries(self, maps: np.ndarray, truth: np.ndarray) -> list[np.ndarray]:
        """(K, 3) pixels of boundaries of every variant, see `metrics.boundary.boundary_areas`."""
        from vitp_pipeline.metrics.boundary import boundary_areas, boundary_width

        width = boundary_width(truth.shape, self.settings.boundary_ratio)
        return [boundary_areas(m, truth, width, len(self.things)) for m in maps]

    def _named(self, names: np.ndarray, void: torch.Tensor, by_mask: np.ndarray) -> dict[str, np.ndarray]:
        """What the masks that likely are something, and cover labelled pixels, are called. names: (V, Q)."""
        present = 1 - void.double().cpu().numpy()
        matched = np.flatnonzero((present > 0.5) & (by_mask != IGNORE))
        at = {variant: i for i, variant in enumerate(self.evaluation.variants)}
        return {
            "query": matched,
            "present": present[matched],
            "label": by_mask[matched],
            "generator": names[at[variant_of(0)]][matched],
            "classifier": names[at[variant_of(1)]][matched],
            "fused": names[at[self.evaluation.headline]][matched],
        }
