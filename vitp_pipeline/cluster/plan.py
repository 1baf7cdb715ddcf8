"""Plan of a run: the jobs that a recipe still needs, and which of them wait for which.

generate-proposals  one task a shard
train-classifier    one task; none when the recipe or a flag names a classifier file
classify            one task a shard: after its shard's proposals and the training
evaluate            one task a shard: after its shard's scores; none where the split has no ground truth
merge               one task: the last `vitp evaluate`, after all of evaluate

The shards of `vitp predict` are a chain of one job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitp_pipeline.artifacts.run import StageRun, is_begun, open_run
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.decoding.remote import name_of
from vitp_pipeline.errors import MissingStageError, PartialError, UsageError
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore


@dataclass(frozen=True)
class Request:
    """Arguments of the stage commands, as the user gave them.

    Attributes:
        recipe: shipped name, or path.
        shards: None = as the run has it.
        name, classifier, alpha: as the flags of `vitp classify` and `vitp evaluate`.
        retry_failed: shards with failed images count as not done.
    """

    recipe: str
    data_root: Path
    out: Run
    shards: int | None = None
    name: str | None = None
    classifier: str | None = None
    alpha: str | None = None
    retry_failed: bool = False

    @cached_property
    def store(self) -> RunStore:
        return open_store(self.out)

    def command(self, stage: str) -> list[str]:
        """Return the arguments of vitp for a stage, without those for its shard."""
        words = ["evaluate" if stage == "merge" else stage, self.recipe]
        words += ["--data-root", name_of(self.data_root), "--out", self.store.url]
        if stage in ("train-classifier", "classify", "evaluate", "merge") and self.name:
            words += ["--name", self.name]
        if stage in ("classify", "evaluate", "merge") and self.classifier:
            words += ["--classifier", self.classifier]
        if stage in ("evaluate", "merge") and self.alpha:
            words += ["--alpha", self.alpha]
        if self.retry_failed and stage in ("generate-proposals", "classify", "evaluate"):
            words += ["--retry-failed"]
        return words


@dataclass(frozen=True)
class Job:
    """One stage's tasks that are to run.

    Attributes:
        shards: of an array, ascending; None = a single task.
        same_shard: the stage whose task of the same shard must have ended before a task starts.
        all_of: the stage all whose tasks must have ended.
    """

    stage: str
    command: tuple[str, ...]
    shards: tuple[int, ...] | None = None
    same_shard: str = ""
    all_of: str = ""


@dataclass(frozen=True)
class Chain:
    """Jobs in an order in which none comes before one that it waits for.

    Attributes:
        shards: how many the run has.
    """

    shards: int
    jobs: tuple[Job, ...]


def jobs_folder(out: Path) -> Path:
    """Return the folder of the scripts, logs and job ids of a run's chain."""
    return out / "jobs"


def plan_chain(request: Request, begin: bool) -> Chain:
    """Plan the remaining jobs of a run.

    Args:
        begin: make RUN/proposals/run.json, which fixes the number of shards, or check that recipe, data and run
            agree. False writes nothing: what a run on this machine has finished is left out, the rest is not checked.
    Raises:
        UsageError: a new run without a number of shards, or another number than the run has.
        UserError: as the stages raise before they start.
    """
    recipe = load_recipe(request.recipe)
    settings = recipe.stage(ProposalSettings)
    classify = recipe.stage(ClassifySettings, name=request.name, classifier=request.classifier)
    run = _proposals(recipe, settings, request, begin)
    count = request.shards if run is None else run.shards
    if not count:
        raise UsageError(f"{request.store.url}: the number of shards of a new run is required", "Give --shards N")
    if run is not None and request.shards not in (None, count):
        raise UsageError(
            f"{run.folder}: this run has {count} shards, not {request.shards}", "The number is fixed when a run starts"
        )
    if run is not None:
        _check_alpha(recipe, request, run.identity.get("class_agnostic") is True)
    every = tuple(range(count))
    proposals = every if run is None else unfinished(run, request.retry_failed)
    alone = _generator_alone(recipe, request)
    training = not alone and not classify.classifier and not _trained(recipe, request, classify.name, begin)
    scored = None if run is None or training or alone else _scores(recipe, classify, request)
    scores = () if alone else every if scored is None else unfinished(scored, request.retry_failed)
    counts, measured = every, False
    if reason := _unlabeled(recipe, settings.split, request) if begin else "":
        say(f"split {settings.split!r} has no ground truth, so nothing is evaluated: {reason}")
        counts, measured = (), True
    elif begin and run is not None and (alone or scored is not None):
        counts, measured = _unmeasured(recipe, classify, request)
    jobs = [
        Job("generate-proposals", (), proposals),
        Job("train-classifier", ()) if training else None,
        Job("classify", (), scores, same_shard="generate-proposals", all_of="train-classifier"),
        Job("evaluate", (), counts, same_shard="generate-proposals" if alone else "classify"),
        Job("merge", (), all_of="evaluate") if not measured else None,
    ]
    return Chain(count, tuple(_with_command(j, request) for j in jobs if j is not None and j.shards != ()))


def _unlabeled(recipe: Recipe, split: str, request: Request) -> str:
    """Return the reason why the images have no ground truth, or ""."""
    from vitp_pipeline.datasets.samples import unlabeled

    return unlabeled(recipe.manifest, request.data_root, split)


def _with_command(job: Job, request: Request) -> Job:
    return Job(job.stage, tuple(request.command(job.stage)), job.shards, job.same_shard, job.all_of)


def _proposals(recipe: Recipe, settings: ProposalSettings, request: Request, begin: bool) -> StageRun | None:
    store = request.store
    folder = store.folder / "proposals"
    if begin and (request.shards is not None or is_begun(store, folder)):
        from vitp_pipeline.stages.generate_proposals import generate_proposals

        choice = ShardChoice(count=request.shards, planned=True)
        generate_proposals(recipe, settings, request.data_root, store, choice)
    return open_run(store, folder) if is_begun(store, folder) else None


def _trained(recipe: Recipe, request: Request, name: str, begin: bool) -> bool:
    """True if the classifier is trained. With `begin` its settings are compared with the recipe's."""
    settings = recipe.stage(TrainSettings, name=name)
    if not request.store.exists(request.store.folder / "classifier" / name / "done.json"):
        return False
    if begin:
        from vitp_pipeline.stages.train_classifier import train_classifier

        with contextlib.suppress(PartialError):  # trained, without images that could not be read
            train_classifier(recipe, settings, request.data_root, request.store)
    return True


def _scores(recipe: Recipe, settings: ClassifySettings, request: Request) -> StageRun | None:
    """Open the class scores of the existing classifier, if it has started to score these proposals."""
    from vitp_pipeline.artifacts.proposals import open_proposals
    from vitp_pipeline.stages.classify import class_scores_run, classifier_file

    file = classifier_file(recipe, settings, request.data_root, request.store)
    try:
        return class_scores_run(open_proposals(request.store), file, settings)
    except MissingStageError:
        return None


def _unmeasured(recipe: Recipe, classify: ClassifySettings, request: Request) -> tuple[tuple[int, ...], bool]:
    """Return (shards left to evaluate, whether the final metrics exist)."""
    from vitp_pipeline.stages.evaluate import prepare

    settings, alphas = _asked(recipe, request)
    evaluation = prepare(recipe, settings, classify, alphas, request.data_root, request.store, ShardChoice())
    shards = unfinished(evaluation.run, request.retry_failed)
    return shards, not shards and request.store.exists(evaluation.run.folder / "result.json")


def _asked(recipe: Recipe, request: Request) -> tuple[EvaluateSettings, Sequence[float]]:
    """Return the settings of `vitp evaluate`, and its values of α."""
    from vitp_pipeline.config.flags import parse_alphas

    alphas: Sequence[float] = parse_alphas(request.alpha) if request.alpha else ()
    return recipe.stage(EvaluateSettings, alpha=alphas[0] if len(alphas) == 1 else None), alphas


def _generator_alone(recipe: Recipe, request: Request) -> bool:
    """True if α = 0 alone is asked for: no classifier is trained, none classifies."""
    from vitp_pipeline.evaluation.definition import needs_classifier

    return not needs_classifier(*_asked(recipe, request))


def _check_alpha(recipe: Recipe, request: Request, class_agnostic: bool) -> None:
    """Raise UsageError when another α than 1 is asked for, and the masks have no class scores."""
    from vitp_pipeline.evaluation.definition import settle_alpha

    settings, alphas = _asked(recipe, request)
    settle_alpha(settings, class_agnostic, recipe, alphas)


def unfinished(run: StageRun, retry_failed: bool) -> tuple[int, ...]:
    """List the shards of a stage that are not done, or in which images failed."""
    from vitp_pipeline.execution.runner import failed_images

    return tuple(s for s in range(run.shards) if not run.finished(s) or (retry_failed and failed_images(run, s)))
