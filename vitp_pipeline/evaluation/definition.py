"""Definition of an evaluation: whose masks and scores, which variants, which metrics.

A variant is one way to classify the masks:

    alpha:A        both scores fused with weight A; alpha:0 is the generator alone, alpha:1 the classifier alone
    upper_bound_point    class of the ground truth at the mask's point (paper Table 5)
    upper_bound_mask     majority class of the ground truth inside the mask

Masks without class scores (`ProposalStore.class_agnostic`) have only alpha:1 and the upper bounds. With α = 0 alone no
classifier is read, and there are only alpha:0 and the upper bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.mask_codec import MaskCodec
from vitp_pipeline.artifacts.proposals import ProposalStore, has_random_weights
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import StageTables
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import IncompatibleError, UsageError

if TYPE_CHECKING:
    from vitp_pipeline.postprocess.segmenter import Segmenter

GENERATE = "generate-proposals"
UPPER_BOUNDS = ("upper_bound_point", "upper_bound_mask")
UPPER_BOUND_TITLES = {
    "upper_bound_point": ("upper bound", "(point labels)"),
    "upper_bound_mask": ("upper bound", "(mask labels)"),
}
"""In tables of the terminal, a line each; pages write both in one."""
HEADLINE = ("generator", "classifier", "fused", *UPPER_BOUNDS)
MAP_KEYS = frozenset({"alpha", "formula", "protocol", "panoptic_rule", "object_threshold", "overlap_threshold"})
MAP_KEYS |= {"overlap", "mask_quality", "detections"}
"""Keys of [evaluate] that change a map; `postprocess.segmenter` applies them. The others choose what is measured."""


def map_settings(settings: EvaluateSettings) -> dict[str, Any]:
    """Return the settings that identify a map, for commands that measure nothing."""
    return {key: value for key, value in identity_of(settings).items() if key in MAP_KEYS}


def settle_alpha(
    settings: EvaluateSettings, class_agnostic: bool, tables: StageTables | None = None, asked: Sequence[float] = ()
) -> EvaluateSettings:
    """Return the settings with the α that counts: their own, or 1 for masks without class scores.

    Args:
        class_agnostic: whether the masks have no class scores.
        tables: the recipe. An α equal to the default counts as asked for if it is in there.
        asked: each α given elsewhere.
    Raises:
        UsageError: another α than 1 is asked for, and there is nothing to weigh.
    """
    if not class_agnostic:
        return settings
    given = settings.alpha != EvaluateSettings.alpha or "alpha" in (tables.tables if tables else {}).get("evaluate", {})
    if odd := [alpha for alpha in (*asked, *([settings.alpha] if given else [])) if alpha != 1]:
        raise UsageError(
            f"α = {odd[0]:g}: masks without class scores: the classifier alone names them, α = 1",
            "Leave out alpha, or set it to 1",
        )
    return replace(settings, alpha=1.0)


def needs_classifier(settings: EvaluateSettings, sweep: Sequence[float] = ()) -> bool:
    """True if a classifier's scores are read: α = 0 is the generator alone.

    Args:
        settings: of `settle_alpha`. sweep: further values of α.
    """
    return any((settings.alpha, *sweep))


@dataclass(frozen=True)
class Inputs:
    """Inputs of an evaluation: the stored proposals and their class scores, None for the generator alone."""

    proposals: ProposalStore
    class_scores: StageRun | None


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's folder and what its rows mean. `alphas` are sorted and hold 0, 1 and the headline α; of masks
    without class scores 1 alone, without a classifier 0 alone.

    `inputs` are None for one that keeps neither masks nor scores (`stages.stream`); to ask it for `proposals` or
    `class_scores` raises IncompatibleError.
    """

    run: StageRun
    inputs: Inputs | None
    dataset: Dataset
    alphas: tuple[float, ...]
    alpha: float
    settings: EvaluateSettings = field(default_factory=EvaluateSettings)

    @property
    def proposals(self) -> ProposalStore:
        return self._stored.proposals

    @property
    def class_scores(self) -> StageRun | None:
        return self._stored.class_scores

    @property
    def _stored(self) -> Inputs:
        if self.inputs is None:
            raise streamed(self.run.folder)
        return self.inputs

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the stages that exist, by stage."""
        kept = {"proposals": self.inputs.proposals.run, "class_scores": self.inputs.class_scores} if self.inputs else {}
        return {name: run.fingerprint for name, run in {**kept, "evaluation": self.run}.items() if run}

    @property
    def codec(self) -> MaskCodec:
        """Compression of the masks that were evaluated."""
        return self.inputs.proposals.codec if self.inputs else MaskCodec.said_by(self.run.identity["stream"][GENERATE])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that are measured: without segments in the ground truth, no panoptic maps."""
        segments = self.dataset.has_segments or self.settings.components
        return tuple(t for t in self.settings.tasks if segments or t != "panoptic")

    @property
    def variants(self) -> tuple[str, ...]:
        return (*map(variant_of, self.alphas), *UPPER_BOUNDS)

    @property
    def class_agnostic(self) -> bool:
        """True if the masks have no class scores."""
        if self.inputs is None:
            return self.run.identity["stream"].get("class_agnostic", False) is True
        return self.inputs.proposals.class_agnostic

    @property
    def has_random_weights(self) -> bool:
        """True if the masks come from a generator with random weights."""
        return has_random_weights(self.inputs.proposals.run.identity if self.inputs else self.run.identity["stream"])

    @property
    def classified_by(self) -> tuple[str, ...]:
        """Names of the class scores that are reported, the headline's last."""
        if self.class_agnostic:
            return HEADLINE[1:2]
        return HEADLINE[:1] if self.alphas == (0.0,) else HEADLINE[:3]

    @property
    def fuses(self) -> bool:
        """True if both class scores are there to be fused."""
        return len(self.classified_by) > 1

    @property
    def compared(self) -> tuple[str, ...]:
        """Of these before and after fusion; of masks without class scores the classifier's, without a classifier the
        generator's.
        """
        return tuple(dict.fromkeys((self.classified_by[0], self.classified_by[-1])))

    @cached_property
    def segmenter(self) -> Segmenter:
        """Segmenter that makes the maps to measure or show."""
        from vitp_pipeline.postprocess.segmenter import Segmenter

        return Segmenter(self.settings, self.dataset.spec.things)

    @property
    def headline(self) -> str:
        """The variant that is reported as fused, or as the classifier's."""
        return variant_of(self.alpha)


def streamed(folder: Path) -> IncompatibleError:
    """Return the error for an evaluation that kept neither masks nor scores."""
    return IncompatibleError(
        f"{folder}: was streamed, so there are no masks and scores to show",
        "Choose another evaluation, or run generate-proposals, classify and evaluate without --stream",
    )


def variant_of(alpha: float) -> str:
    return f"alpha:{alpha + 0.0:.12g}"  # + 0.0: there is no −0


def headline_variants(evaluation: Evaluation) -> dict[str, int]:
    """Headline name → number of the variant."""
    number = {variant: i for i, variant in enumerate(evaluation.variants)}
    chosen = {"generator": variant_of(0), "classifier": variant_of(1), "fused": evaluation.headline}
    return {name: number[chosen.get(name, name)] for name in (*evaluation.classified_by, *UPPER_BOUNDS)}


@dataclass(frozen=True)
class Measured:
    """Metrics of an evaluation, wherever the scores come from."""

    settings: EvaluateSettings
    points: str
    alphas: tuple[float, ...]

    @classmethod
    def of(
        cls,
        settings: EvaluateSettings,
        classify: ClassifySettings,
        sweep: Sequence[float],
        class_agnostic: bool = False,
    ) -> Measured:
        """Args: settings of `settle_alpha`."""
        own = {0.0, 1.0, settings.alpha, *sweep} if needs_classifier(settings, sweep) else {0.0}
        alphas = {1.0} if class_agnostic else own
        return cls(settings, classify.points, tuple(sorted(alphas)))

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "settings": identity_of(self.settings),
            "points": self.points,
            "alphas": list(self.alphas),
        }

    def evaluation(self, run: StageRun, inputs: Inputs | None, dataset: Dataset) -> Evaluation:
        return Evaluation(run, inputs, dataset, self.alphas, self.settings.alpha, self.settings)


def check_views(evaluation: Evaluation) -> None:
    """Raise UsageError when a requested figure is undefined for several views of an image."""
    if evaluation.settings.certain:
        raise UsageError("certain = true needs one view of an image", "Leave it out of [evaluate]")
    evaluation.segmenter.check_views(one_whole=False)
    if others := [task for task in evaluation.tasks if task != "semantic"]:
        raise UsageError(
            f"{' and '.join(others)} figures need one view of an image: only semantic scores are averaged",
            'Set tasks = ["semantic"] in [evaluate], or generate proposals without scales, flip and window',
        )


def check_tasks(settings: EvaluateSettings, dataset: Dataset) -> None:
    """Raise UsageError when the dataset has no ground truth, or none for a requested task, or a figure is undefined."""
    dataset.require_truth("evaluate")
    if settings.certain and settings.overlap != "sum":
        raise UsageError(
            f"certain = true needs overlap = 'sum', not {settings.overlap!r}: its bounds are of sums over masks",
            "Leave certain out of [evaluate]",
        )
    if dataset.has_segments or settings.components:
        return
    measured = {"semantic", "instance"} if dataset.has_instances else {"semantic"}
    if "instance" in {*settings.tasks} - measured or not measured & {*settings.tasks}:
        raise UsageError(
            f"tasks = {list(settings.tasks)}: the labels of {dataset.spec.name!r} have no segments",
            "components = true takes connected pieces of the things' classes for instances",
        )
