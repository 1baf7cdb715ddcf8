"""Setup of `vitp predict`: from recipe, run and flags to networks, settings and their identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.proposals import RANDOM_WEIGHTS, has_random_weights
from vitp_pipeline.config.choices import TASKS
from vitp_pipeline.config.files import absolute
from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import NO_DATA_ROOT, StageTables, manifest_of
from vitp_pipeline.config.settings import TABLES, ClassifySettings, EvaluateSettings, ProposalSettings, Settings
from vitp_pipeline.errors import UsageError
from vitp_pipeline.evaluation.definition import map_settings, settle_alpha
from vitp_pipeline.generators.base import is_class_agnostic
from vitp_pipeline.generators.registry import Source, find_source
from vitp_pipeline.inference.batch import OVERLAYS, PredictJob
from vitp_pipeline.inference.foreign_masks import ForeignMasks, guess_format
from vitp_pipeline.inference.image_files import Picture
from vitp_pipeline.interop.mask_import import NO_OBJECT_SHARE
from vitp_pipeline.stages.classify import classifier_file
from vitp_pipeline.stages.convert_masks import refuse_views
from vitp_pipeline.storage.digests import Digests
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.validation.keys import keys_of
from vitp_pipeline.validation.tables import did_you_mean

if TYPE_CHECKING:
    from vitp_pipeline.datasets import DatasetSpec
    from vitp_pipeline.inference.predictor import Predictor

KINDS = (ProposalSettings, ClassifySettings, EvaluateSettings)


def prepare(
    out: Run,
    recipe: str | None,
    run: RunStore | None,
    data_root: Path | None,
    tasks: tuple[str, ...],
    overlay: str,
    flags: dict[str, Any],
    changes: list[str] | None,
    masks: MaskFiles | None = None,
) -> tuple[Callable[[], Predictor], PredictJob]:
    """Prepare the construction of the predictor, and the outputs to write.

    Args:
        recipe: a recipe or a manifest. run: the store of a run, for its classifier.
        tasks: empty = what fits: semantic, and panoptic where a manifest says which classes are things.
        flags: keys of the three tables, None = not given. changes: as --set has them.
        masks: of another tool, in the place of a generator.
    Raises:
        UsageError: a setting is missing, unknown or invalid. InputError: a file is missing.
    """
    if overlay not in OVERLAYS:
        raise UsageError(f"--overlays {overlay!r}", f"Choose one of: {', '.join(OVERLAYS)}")
    if odd := [task for task in tasks if task not in TASKS]:
        raise UsageError(f"--task {odd[0]!r}", f"Choose among: {', '.join(TASKS)}")
    spec: DatasetSpec | None = None
    given = StageTables(Path("predict"), {})
    if recipe is not None:
        spec, loaded = manifest_of(recipe)
        given = loaded or given
    if spec is None and {"panoptic", "instance"} & set(tasks):
        raise UsageError("which classes are things is unknown", "Give a manifest that says so, or a recipe: --recipe R")
    changed = parse_changes(changes)
    proposals, classify, evaluate = _settings(given, _in_place(masks, flags, changed), changed)
    root, store = data_root or NO_DATA_ROOT, open_store(out)
    named = bool(classify.classifier) or run is not None

    def find_classifier() -> Path | None:
        classes = None if spec is None else spec.class_names
        return classifier_file(given, classify, root, run or store, classes) if named else None

    source: Source | ForeignMasks
    if masks is None:
        source = find_source(proposals, lambda text: given.find_file(text, root))
    else:
        refuse_views(proposals)
        source = masks.open(spec or _spec_of(find_classifier()))
    agnostic = is_class_agnostic(source)
    given_alpha = flags["alpha"] is not None or "alpha" in changed
    evaluate = settle_alpha(evaluate, agnostic, given, (evaluate.alpha,) if given_alpha else ())
    if not named and (flags["name"] or evaluate.alpha):
        raise UsageError("no classifier given", WHICH_CLASSIFIER + ("" if agnostic else NEEDS_NONE))
    classifier = find_classifier()
    if not tasks:
        tasks = ("semantic", "panoptic") if spec and any(spec.things) and not _many_views(proposals) else ("semantic",)

    digests = Digests(store)
    identity = {
        "generator": source.identity if isinstance(source, ForeignMasks) else source.identity(digests),
        "classifier": classifier and digests.of(classifier),
        "manifest": spec and {**spec.identity(), "colors": [list(c.color) for c in spec.classes]},
        "generate-proposals": {k: v for k, v in identity_of(proposals).items() if k not in NOT_PREDICTED},
        "classify": identity_of(classify),
        "evaluate": map_settings(evaluate),
    }
    random = {"weights": RANDOM_WEIGHTS} if has_random_weights(identity) else {}
    shown = {**_shown(source), **random, "classifier": classifier and str(classifier), "alpha": evaluate.alpha}

    def build() -> Predictor:
        from vitp_pipeline.classifier.weights import load_classifier
        from vitp_pipeline.inference.predictor import Predictor
        from vitp_pipeline.runtime.devices import choose_device

        digests.prove()
        model = load_classifier(classifier) if classifier else None
        network = source if isinstance(source, ForeignMasks) else source.build(choose_device(proposals.device))
        return Predictor(network, model, spec, proposals, classify, evaluate)

    own = source if isinstance(source, ForeignMasks) else None
    return build, PredictJob(store, identity, tasks, shown, overlay, own)


@dataclass(frozen=True)
class MaskFiles:
    """Masks of another tool for some pictures; `format` None = by the files in the folder."""

    path: Path
    format: str | None
    pictures: Sequence[Picture]
    no_object_share: float = NO_OBJECT_SHARE

    def open(self, spec: DatasetSpec) -> ForeignMasks:
        """Raises UserError: as `ForeignMasks`."""
        return ForeignMasks(
            self.format or guess_format(self.path), self.path, self.pictures, spec, self.no_object_share
        )


def _in_place(masks: MaskFiles | None, flags: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Name masks in the place of a generator. Raises UsageError when a flag or --set names one."""
    if masks is None:
        return flags
    given = {"--generator": flags.get("config"), "--checkpoint": flags.get("checkpoint")}
    given |= {f"--set {key}": changes.get(key) for key in ("config", "checkpoint")}
    if named := [flag for flag, value in given.items() if value]:
        raise UsageError(
            f"{named[0]} and --masks exclude each other", "Masks of another tool take the place of a generator"
        )
    return {**flags, "config": "(imported)", "checkpoint": ""}


def _spec_of(classifier: Path | None) -> DatasetSpec:
    """Return the classes if no manifest is given: the classifier's. Raises UsageError without one."""
    from vitp_pipeline.classifier.weights import classes_of
    from vitp_pipeline.inference.predictor import plain_spec

    if classifier is None:
        raise UsageError("no classifier given", WHICH_CLASSIFIER)
    return plain_spec(classes_of(classifier), "the classifier's classes")


def _shown(source: Source | ForeignMasks) -> dict[str, Any]:
    if isinstance(source, ForeignMasks):
        return {"masks_from": {"format": source.format, "path": str(source.path)}}
    return {"generator": source.name}


WHICH_CLASSIFIER = (
    "Name its file, --classifier FILE (a released one: hf:Sajjad-Sh33/ViT-P/FILE), or a run that has one, --run RUN; "
    "docs/own-dataset.md says how to train one."
)
NEEDS_NONE = " The generator alone needs none: --alpha 0"

NOT_PREDICTED = {"split", "limit", "part_size", "points"}
"""Keys of [generate-proposals] that an image of one's own knows nothing of."""


def _many_views(settings: ProposalSettings) -> bool:
    return settings.flip or len(settings.scales) > 1 or any(settings.window)


def _settings(
    recipe: StageTables, flags: dict[str, Any], changes: dict[str, Any]
) -> tuple[ProposalSettings, ClassifySettings, EvaluateSettings]:
    """Build the three tables; a key of --set goes to all that have it.

    Raises:
        UsageError: no table has it, or no generator is named.
    """
    known: dict[type, set[str]] = {kind: set(keys_of(kind)) for kind in KINDS}
    known[ProposalSettings] -= NOT_PREDICTED
    all_known = sorted(set().union(*known.values()))
    for key in changes:
        if key not in all_known:
            raise UsageError(f"--set {key}: no stage of predict has such a key", did_you_mean(key, all_known))
    paths = {key: absolute(flags[key]) for key in ("config", "checkpoint", "classifier")}
    values = {**flags, **paths, **changes}
    table = recipe.tables.get(next(n for n, kind in TABLES.items() if kind is ProposalSettings), {})
    if values.get("config") is None and "config" not in table:
        raise UsageError(
            "no generator given",
            "Give --generator CONFIG, a recipe that names one, --recipe R, or --masks of another tool",
        )
    if values.get("config") is not None:  # the recipe's weights are not of another generator
        values["checkpoint"] = values.get("checkpoint") or ""

    def stage(kind: type[Settings]) -> Settings:
        return recipe.stage(kind, **{k: v for k, v in values.items() if k in known[kind]})

    return stage(ProposalSettings), stage(ClassifySettings), stage(EvaluateSettings)
