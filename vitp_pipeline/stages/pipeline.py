"""All four stages one after another, on this machine: `vitp run`. It calls what their commands call.

Every stage is restartable, so the whole is: run again, it continues where it was stopped. Without a classifier the
generator alone is measured; a split without ground truth is exported instead of measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import TABLES, ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import PartialError, UsageError
from vitp_pipeline.evaluation.definition import Evaluation, needs_classifier
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.execution.runner import Outcome
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.generators.base import is_class_agnostic
from vitp_pipeline.generators.registry import find_source
from vitp_pipeline.runtime.progress import StagesView, say
from vitp_pipeline.stages import evaluate as evaluation_stage
from vitp_pipeline.stages import export_results
from vitp_pipeline.stages.classify import classifier_file, classify
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.stages.train_classifier import train
from vitp_pipeline.storage.open_store import Run, open_store

STAGES = tuple(TABLES)
EXPORTED = ("label-png", "coco-panoptic")
"""Formats in which images without ground truth are exported, as far as the manifest allows them."""


@dataclass(frozen=True)
class PipelineSettings:
    """Settings of all stages.

    Attributes:
        generate: None where the run's masks are imported.
        train: None where no classifier is to be trained.
        alphas: values of α that the user asked for, the headline's among them.
    """

    generate: ProposalSettings | None
    train: TrainSettings | None
    classify: ClassifySettings
    evaluate: EvaluateSettings
    alphas: Sequence[float] = ()

    @property
    def classified(self) -> bool:
        """True if a classifier is there or is to be trained, and its scores are asked for."""
        has_one = bool(self.train or self.classify.classifier)
        return has_one and needs_classifier(self.evaluate, self.alphas)


@dataclass
class Finished:
    """Results of the stages that ran.

    Attributes:
        evaluation, result: as `vitp evaluate` has them; None where nothing was measured.
        exports: folders of exported files.
        unmeasured: the reason why there are no figures, or "".
        partial: sentences about images that failed, a stage each.
    """

    evaluation: Evaluation | None = None
    result: dict[str, Any] | None = None
    exports: list[Path] = field(default_factory=list)
    unmeasured: str = ""
    partial: list[str] = field(default_factory=list)

    def raise_partial(self) -> None:
        """Raise PartialError when images failed in any stage."""
        if self.partial:
            raise PartialError("; ".join(self.partial), "Fix the inputs, then run again with --retry-failed")


class Pipeline:
    """The stages of a recipe on a dataset and a run."""

    def __init__(self, recipe: Recipe, settings: PipelineSettings, data_root: Path, out: Run) -> None:
        """Check what can be checked before anything is computed.

        Raises:
            UsageError: masks without class scores and no classifier; keys that contradict each other.
            InputError: images, weights or a file of the generator are missing.
        """
        self.recipe, self.settings, self.data_root, self.store = recipe, settings, data_root, open_store(out)
        self.finished = Finished()
        if settings.generate is not None:
            dataset = Dataset(recipe.manifest, data_root, settings.generate.split)
            source = find_source(settings.generate, lambda text: recipe.find_file(text, data_root))
            agnostic = is_class_agnostic(source)
        else:
            proposals = open_proposals(self.store)
            dataset = Dataset(recipe.manifest, data_root, proposals.run.identity["settings"].get("split", "val"))
            agnostic = proposals.class_agnostic
        self.finished.unmeasured = dataset.samples.unlabeled
        if agnostic and not settings.classified:
            raise UsageError(
                "masks without class scores need a classifier, and there is none",
                "Give --classifier FILE, or a recipe with [train-classifier]",
            )
        if settings.classify.classifier and settings.classified:
            classifier_file(recipe, settings.classify, data_root, self.store)
        if settings.train is not None and settings.classified:
            Dataset(recipe.manifest, data_root, settings.train.split).require_truth("train-classifier")
            if settings.train.weights not in ("", "hub"):
                recipe.find_file(settings.train.weights, data_root)

    def stages(self) -> dict[str, Callable[[bool], None]]:
        """Return the stages that are to run, in order; each takes `retry_failed`."""
        settings = self.settings
        wanted = {
            "generate-proposals": settings.generate is not None,
            "train-classifier": settings.train is not None and settings.classified,
            "classify": settings.classified,
            "evaluate": True,
        }
        steps = (self._generate, self._train, self._classify, self._measure)
        return {name: step for name, step in zip(STAGES, steps, strict=True) if wanted[name]}

    def run(self, until: str = STAGES[-1], retry_failed: bool = False) -> Finished:
        """Run the stages up to and including one; those that are done do nothing.

        Raises:
            UserError: any of its kinds but PartialError, which `Finished.raise_partial` raises at the end.
        """
        last = STAGES.index(until)
        stages = {name: step for name, step in self.stages().items() if STAGES.index(name) <= last}
        with StagesView(list(stages)) as view:
            for name, step in stages.items():
                view.begin(name)
                step(retry_failed)
                view.end()
        return self.finished

    def _generate(self, retry_failed: bool) -> None:
        assert self.settings.generate is not None
        outcome = generate_proposals(
            self.recipe, self.settings.generate, self.data_root, self.store, ShardChoice(), retry_failed
        )
        self._tell(outcome, "proposals")

    def _train(self, retry_failed: bool) -> None:
        assert self.settings.train is not None
        training = train(self.recipe, self.settings.train, self.data_root, self.store)
        if training is not None:
            self._partly(training.report)

    def _classify(self, retry_failed: bool) -> None:
        outcome = classify(self.recipe, self.settings.classify, self.data_root, self.store, ShardChoice(), retry_failed)
        self._tell(outcome, "classify")

    def _measure(self, retry_failed: bool) -> None:
        settings = self._asked()
        if self.finished.unmeasured:
            self._export(settings, retry_failed)
            return
        common = (self.data_root, self.store, ShardChoice())
        alphas = self.settings.alphas if self.settings.classified else ()
        evaluation = evaluation_stage.prepare(self.recipe, settings, self.settings.classify, alphas, *common)
        shards = range(evaluation.run.shards)
        outcome = evaluation_stage.evaluate_shards(evaluation, settings, self.settings.classify, shards, retry_failed)
        self._tell(outcome, "evaluate")
        self.finished.evaluation = evaluation
        self.finished.result = result_of(evaluation, allow_missing=True)

    def _export(self, settings: EvaluateSettings, retry_failed: bool) -> None:
        say(f"evaluate: no figures, {self.finished.unmeasured}; the maps are exported instead")
        variant = "fused" if self.settings.classified else "generator"
        for form in EXPORTED:
            if form == "coco-panoptic" and not any(self.recipe.manifest.things):
                continue
            arguments = (settings, self.settings.classify, form, variant, self.data_root, self.store, ShardChoice())
            export = export_results.prepare(self.recipe, *arguments)
            outcome = export_results.export_shards(export, range(export.run.shards), retry_failed)
            self._tell(outcome, f"export-results {form}")
            self.finished.exports.append(export.results)

    def _asked(self) -> EvaluateSettings:
        """Return the settings of [evaluate]; without a classifier with α = 0."""
        from dataclasses import replace

        return self.settings.evaluate if self.settings.classified else replace(self.settings.evaluate, alpha=0.0)

    def _tell(self, outcome: Outcome, stage: str) -> None:
        self._partly(lambda: outcome.report(stage))

    def _partly(self, report: Callable[[], None]) -> None:
        """Call a report and keep for the end that images failed: the others go on."""
        try:
            report()
        except PartialError as error:
            say(f"{error.message}")
            self.finished.partial.append(error.message)
