"""What an evaluation is: whose masks and scores, which variants of naming them, what is measured.

A variant is a way to name the masks:

    alpha:A        both scores fused with weight A; alpha:0 is the generator alone, alpha:1 the classifier alone
    alpha_by_class, alpha_by_score    the headline, where α differs between classes, or between masks by 1 − v
    bound_point    named by the ground truth at the mask's point (paper Table 5)
    bound_mask     named by the majority of the ground truth inside the mask
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.codec import MaskCodec
from vitp_pipeline.artifacts.proposals import ProposalStore
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import UsageError
from vitp_pipeline.fingerprint import identity_of
from vitp_pipeline.recipe import ClassifySettings, EvaluateSettings, Recipe

if TYPE_CHECKING:
    import torch

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
    measured = {"semantic", "instance"} if dataset.has_instances else {"semantic"}
    if "instance" in {*settings.tasks} - measured or not measured & {*settings.tasks}:
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
