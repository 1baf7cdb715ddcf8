"""Load an evaluation from a run directory without its recipe, from the stored identities alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.proposals import ProposalStore, open_proposals
from vitp_pipeline.artifacts.run import StageRun, is_begun, open_run
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.datasets import Dataset, DatasetSpec, load_manifest
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS
from vitp_pipeline.datasets.spec import ClassInfo, default_color
from vitp_pipeline.errors import CorruptError, IncompatibleError, InputError, MissingStageError, UsageError
from vitp_pipeline.evaluation.count_reader import Rows, read_rows
from vitp_pipeline.evaluation.definition import Evaluation, Inputs, headline_variants, streamed
from vitp_pipeline.evaluation.run_labels import classifier_folder, classifier_named, facts_of, labels
from vitp_pipeline.evaluation.summary import read_result_totals, summarize
from vitp_pipeline.shipped import shipped
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged
from vitp_pipeline.validation.tables import checked

COLUMNS = ("semantic", "panoptic", "masks")
"""Columns of the rows that pages look at image by image; all other figures are of the sums."""
READ = ("proposals", "points", "alphas", "settings")
"""Keys that the identity of an evaluation must have."""
LISTED = 20
"""Evaluations of a run that a message lists at most."""


@dataclass(frozen=True)
class NoData:
    """The part of a `Dataset` that is known without its files."""

    spec: DatasetSpec
    split: str

    @property
    def has_segments(self) -> bool:
        return LABEL_KINDS[self.spec.kind].has_segments


@dataclass(frozen=True)
class StoredEvaluation:
    """A finished evaluation, its rows and figures.

    Attributes:
        store: of the run.
        named: True if the evaluation itself was given, not only its run.
        evaluation: as `stages.evaluate.prepare` makes it; its dataset is a `NoData` where no data root was given.
        rows: of the images, `COLUMNS` of the variants `Evaluation.compared`.
        result: the figures, as in result.json.
        has_data: whether images and ground truth can be read.
    """

    store: RunStore
    named: bool
    evaluation: Evaluation
    rows: Rows
    result: dict[str, Any]
    has_data: bool

    @property
    def classes(self) -> tuple[str, ...]:
        return self.evaluation.dataset.spec.class_names


def open_evaluation(run: Run, data_root: Path | None = None, recipe: str | None = None) -> StoredEvaluation:
    """Open an evaluation of a run.

    Args:
        run: its newest evaluation is taken; a path or URL may also give one, RUN/evaluation/FINGERPRINT.
        data_root: where images and ground truth lie; None does without them.
        recipe: gives the manifest where it is none of the shipped ones.
    Raises:
        InputError: no such folder; no manifest is known for a data root.
        MissingStageError: nothing is evaluated there.
        IncompatibleError: the recipe's manifest is another than the run's; the evaluation was streamed, or of several
            views.
        CorruptError: a stored file is damaged.
    """
    store, folder, named = find_evaluation(run)
    rebuilt = open_run(store, folder)
    if "stream" in rebuilt.identity:
        raise streamed(folder)
    proposals = open_proposals(store)
    proposals.require_one_view("reports")
    if missing := [key for key in READ if key not in rebuilt.identity]:
        raise damaged(folder / "run.json", f"damaged (its identity has no {missing[0]!r})")
    class_scores = None
    if rebuilt.identity["alphas"] != [0.0]:
        if "class_scores" not in rebuilt.identity:
            raise damaged(folder / "run.json", "damaged (its identity has no 'class_scores')")
        scored_by = rebuilt.identity["class_scores"]
        class_scores = open_run(store, store.folder / "class_scores" / scored_by[:12], "classify")
    for name, stage in {"proposals": proposals.run, "class_scores": class_scores}.items():
        if stage and stage.fingerprint != rebuilt.identity[name]:
            raise IncompatibleError(f"{stage.folder}: not what {folder} was made from", "Run `vitp evaluate` again")
    settings = _settings(rebuilt)
    needed = {1} if proposals.class_agnostic else {0, 1, settings.alpha} if class_scores else {0, settings.alpha}
    if absent := needed.difference(rebuilt.identity["alphas"]):
        raise damaged(folder / "run.json", f"damaged (its `alphas` lack {min(absent):g})")
    spec = _spec(proposals, recipe, data_root is not None)
    split = proposals.run.identity["settings"].get("split", "val")
    dataset = NoData(spec, split) if data_root is None else Dataset(spec, data_root, split)
    evaluation = Evaluation(
        rebuilt,
        Inputs(proposals, class_scores),
        dataset,  # type: ignore[arg-type]
        tuple(rebuilt.identity["alphas"]),
        settings.alpha,
        settings,
    )
    numbers = headline_variants(evaluation)
    rows = read_rows(evaluation, COLUMNS, [numbers[name] for name in evaluation.compared])
    result = summarize(evaluation, read_result_totals(evaluation), allow_missing=True)
    return StoredEvaluation(store, named, evaluation, rows, result, data_root is not None)


_NAMED = re.compile(r"(.*?)/*(?:/evaluation/([0-9a-f]{12}))?/*", re.DOTALL)


def find_evaluation(run: Run) -> tuple[RunStore, Path, bool]:
    """Return the store of a run, RUN/evaluation/FINGERPRINT and whether the caller gave that, by path or URL; else it
    is the newest evaluation that measured something.
    """
    name = ""
    if isinstance(run, RunStore):
        store = run
    elif match := _NAMED.fullmatch(str(run) if "://" in str(run) else str(Path(run).absolute())):
        name = match[2] or ""
        store = open_store(match[1] if "://" in str(run) else Path(match[1]))
    if not store.folder.is_dir() or (name and not is_begun(store, store.folder / "evaluation" / name)):
        raise InputError(f"{run}: not a run directory", "A run directory is what you gave as --out")
    if name:
        return store, store.folder / "evaluation" / name, True
    found = _measured(store)
    if not found:
        raise MissingStageError(f"{store.url}: nothing is evaluated there yet", "Run `vitp evaluate` first")
    return store, found[0].folder, False


def evaluations_in(store: RunStore) -> dict[str, str]:
    """Label the evaluations of a run that hold something, by folder; the newest first."""
    found = _measured(store)
    return dict(zip((stage.folder.name for stage in found), labels(facts_of(store, found)), strict=True))


def listed(run: str, evaluations: dict[str, str]) -> list[str]:
    """Format some `evaluations_in` a run, a line each: the folder, as it can be given, and its label."""
    lines = [f"  {run}/evaluation/{name}: {label}" for name, label in evaluations.items()]
    more = len(lines) - LISTED
    return lines[:LISTED] + ([f"  and {more} more, which `vitp status {run}` lists"] if more > 0 else [])


def _measured(store: RunStore) -> list[StageRun]:
    """The evaluations that hold something, the newest first."""
    folders = [store.folder / "evaluation" / name for name in store.folders(store.folder / "evaluation")]
    stages = [open_run(store, folder) for folder in folders if is_begun(store, folder)]
    found = [stage for stage in stages if any(stage.finished(shard) for shard in range(stage.shards))]
    return sorted(found, key=lambda stage: (stage.provenance["created"], stage.folder.name), reverse=True)


def _settings(run: StageRun) -> EvaluateSettings:
    """The identity's settings: it holds those that are not the default."""
    given, known = run.identity["settings"], {field.name for field in fields(EvaluateSettings)}
    if unknown := sorted(set(given) - known):
        raise IncompatibleError(f"{run.folder}: made with the setting {unknown[0]!r}, unknown here", "Update vitp")
    try:
        return checked(EvaluateSettings, given, f"{run.folder / 'run.json'}:")
    except UsageError as error:
        raise CorruptError(error.message, error.hint) from error


def _spec(proposals: ProposalStore, recipe: str | None, needed: bool) -> DatasetSpec:
    """The run's manifest: the recipe's, else a shipped one that says the same, else classes without files."""
    identity = proposals.run.identity["manifest"]

    def fits(spec: DatasetSpec) -> bool:
        return bool(json.loads(json.dumps(spec.identity())) == identity)

    if recipe is not None:
        spec = load_recipe(recipe).manifest
        if not fits(spec):
            raise IncompatibleError(
                f"{proposals.run.folder}: made with another manifest than {spec.name!r} of {recipe}",
                "Use the recipe that the run was begun with",
            )
        return spec
    for file in sorted(shipped("manifests").glob("*.toml")):
        if fits(spec := load_manifest(file)):
            return spec
    if needed:
        raise UsageError(
            f"{proposals.run.folder}: its manifest {identity['name']!r} is none of the shipped ones",
            "Give the run's recipe with --recipe, so that its images can be found",
        )
    classes = tuple(
        ClassInfo(name, label, thing, default_color(i)) for i, (name, label, thing) in enumerate(identity["classes"])
    )
    return DatasetSpec(identity["name"], classes, identity["kind"], tuple(identity["ignore"]), {})


def provenance_of(stored: StoredEvaluation) -> list[dict[str, Any]]:
    """List per stage of the run, in order: folder, fingerprint, settings, command and versions."""
    stages, class_scores = [stored.evaluation.proposals.run], stored.evaluation.class_scores
    if class_scores is not None:
        if (trained := classifier_folder(stored.store, class_scores.identity["classifier"])) is not None:
            stages.append(open_run(stored.store, trained))
        stages.append(class_scores)
    stages.append(stored.evaluation.run)
    entries = []
    for stage in stages:
        identity = {k: v for k, v in stage.identity.items() if k not in ("manifest", "stage")}
        entries.append(
            {
                **stage.provenance,
                "folder": stage.folder.relative_to(stored.store.folder).as_posix(),
                "fingerprint": stage.fingerprint,
                "identity": json.dumps(identity, indent=1, ensure_ascii=False, sort_keys=True),
            }
        )
    return entries


def classifier_name(stored: StoredEvaluation) -> str:
    """The name of the classifier in its run, or the beginning of its digest; "none" without one."""
    class_scores = stored.evaluation.class_scores
    return "none" if class_scores is None else classifier_named(stored.store, class_scores.identity["classifier"])
