"""Stage three: classify the point of every mask with a trained classifier. Reads images and points, no masks.

The one exception is a classifier prompted with masks (`classifier/mask_prompt.py`), which reads them all.
"""

from __future__ import annotations

import json
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.proposals import (
    ProposalEntry,
    ProposalStore,
    open_proposals,
)
from vitp_pipeline.artifacts.run import StageRun, create_or_check, is_begun
from vitp_pipeline.classifier.mask_classifier import NOT_FINITE, MaskClassifier, PromptedImage
from vitp_pipeline.config.classify import RELEASED
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import Recipe, StageTables
from vitp_pipeline.config.settings import ClassifySettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import IncompatibleError, InputError, MissingStageError, UsageError, UserError
from vitp_pipeline.evaluation.run_labels import files_that_scored
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.geometry import Size, size_of
from vitp_pipeline.runtime.output import with_aliases
from vitp_pipeline.stages.features import Features, forget_damaged
from vitp_pipeline.storage.digests import Digests, fetch_classifier
from vitp_pipeline.storage.fingerprint import fingerprint
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.artifacts.features import FeatureStore
    from vitp_pipeline.classifier.features.source import FeatureSource


def classify(
    recipe: Recipe,
    settings: ClassifySettings,
    data_root: Path,
    out: Run,
    shard: ShardChoice,
    retry_failed: bool = False,
) -> Outcome:
    """Score the points of the proposals and write RUN/class_scores/FINGERPRINT.

    Raises:
        MissingStageError: the run has no classifier, or not the proposals of a shard.
        UserError: any of its other kinds.
    """
    store = open_store(out)
    proposals = open_proposals(store)
    check_manifest(proposals, recipe)
    classifier = classifier_file(recipe, settings, data_root, store)
    require_shards(proposals, shard)
    digests = Digests(store)
    run = class_scores_run(proposals, classifier, settings, create=True, digests=digests)
    shards = shard.within(run.shards)
    require_proposals(proposals, shards)
    dataset = Dataset(recipe.manifest, data_root, proposals.run.identity["settings"].get("split", "val"))

    @cache
    def build() -> ClassMaker:
        digests.prove()
        return ClassMaker(run, proposals, dataset, classifier, settings)

    unfinished = [shard for shard in shards if retry_failed or not run.finished(shard)]
    if unfinished and reads_features(classifier):
        build().store_features(unfinished)
    outcome = run_parts(run, shards, build, "classify", retry_failed)
    if build.cache_info().currsize:
        forget_damaged(build().stored)
    return outcome


def classifier_file(
    recipe: StageTables,
    settings: ClassifySettings,
    data_root: Path,
    out: Run,
    classes: Sequence[str] | None = None,
) -> Path:
    """Find the classifier to use; a released file is converted first.

    Args:
        classes: names for a released file, which has none; None = those of the recipe's manifest.
    Raises:
        MissingStageError: it has not been trained (to its end).
        InputError: there is no such file, or it cannot be fetched.
        IncompatibleError: a released file of another number of classes.
    """
    store = open_store(out)
    if settings.classifier:
        file = recipe.find_file(settings.classifier, data_root)
        if file.suffix not in RELEASED:  # what converts them loads torch, which nothing else here needs
            return file
        from vitp_pipeline.classifier.released_files import as_classifier

        names = recipe.manifest.class_names if classes is None and isinstance(recipe, Recipe) else classes
        return as_classifier(file, names)
    path = store.folder / "classifier" / settings.name / "model.safetensors"
    if not store.exists(path):
        hint = "Run `vitp train-classifier` first, or let it finish; `vitp evaluate --alpha 0` needs none"
        if others := trained_classifiers(store):
            listed = f"{', '.join(others[:8])}{', …' if len(others) > 8 else ''}"
            hint = f"Choose one that is there with --name: {listed}; or train this one first"
        if scored := _which_scored(store):
            hint = f"{scored}{f'. Or choose one with --name: {listed}' if others else ''}"
        raise MissingStageError(f"{path}: no trained classifier", hint)
    return fetch_classifier(store, path)


def _which_scored(store: RunStore) -> str:
    """Say which classifiers from outside the run have scored its proposals, and how they are chosen; "" for none."""
    files = sorted(set(files_that_scored(store).values()))
    if not files:
        return ""
    flags = " or ".join(f"--classifier {shlex.quote(file)}" for file in files[:4])
    what = "Scores of a classifier are" if len(files) == 1 else f"Scores of {len(files)} classifiers are"
    return f"{what} here: give {flags}"


def trained_classifiers(store: RunStore) -> list[str]:
    """List the names of a run's classifiers whose training has ended."""
    folder = store.folder / "classifier"
    return [name for name in store.folders(folder) if "model.safetensors" in store.list(folder / name)]


def class_scores_run(
    proposals: ProposalStore,
    classifier: Path,
    settings: ClassifySettings,
    create: bool = False,
    digests: Digests | None = None,
) -> StageRun:
    """Return the folder of this classifier's scores for these proposals, in the same shards and parts.

    Args:
        digests: recorded for the classifier; verified when it is loaded.
    Raises:
        MissingStageError: it is not there and `create` is false.
    """
    store = proposals.run.store
    identity = {
        "stage": "class_scores",
        "proposals": proposals.run.fingerprint,
        "classifier": (digests or Digests(store)).of(classifier),
        "settings": identity_of(settings),
    }
    folder = store.folder / "class_scores" / fingerprint(identity)[:12]
    if not create and not is_begun(store, folder):
        raise MissingStageError(
            f"{folder}: this classifier has not scored these proposals with these settings",
            " ".join(filter(None, ("Run `vitp classify` first.", _which_scored(store)))),
        )
    plan = proposals.run.images, proposals.run.shards, proposals.run.part_size
    return create_or_check(store, folder, identity, *plan, classifier=name_outside(store, classifier))


def name_outside(store: RunStore, classifier: Path) -> str:
    """Return the path of a classifier for people; "" where it is one of the run's own."""
    path = classifier.resolve()
    return "" if path.is_relative_to(store.folder.resolve()) else with_aliases(path)


def check_manifest(proposals: ProposalStore, recipe: Recipe) -> None:
    """Raise IncompatibleError when the recipe's manifest is not the one the proposals were made with."""
    if proposals.run.identity["manifest"] != json.loads(json.dumps(recipe.manifest.identity())):
        raise IncompatibleError(
            f"{proposals.run.folder}: made with another manifest than {recipe.manifest.name!r} of {recipe.path.name}",
            "Use the recipe that the run was begun with",
        )


def require_shards(proposals: ProposalStore, shard: ShardChoice) -> None:
    """Raise UsageError when the number of shards differs from that of the proposals."""
    if shard.count is not None and shard.count != proposals.run.shards:
        raise UsageError(
            f"{proposals.run.folder}: this run has {proposals.run.shards} shards, not {shard.count}",
            f"Use --shard I/{proposals.run.shards}: the number is fixed by the first command on a run",
        )


def require_proposals(proposals: ProposalStore, shards: Sequence[int]) -> None:
    """Raise MissingStageError with the shards whose proposals are not finished."""
    if missing := [shard for shard in shards if not proposals.run.finished(shard)]:
        raise MissingStageError(
            f"{proposals.run.folder}: shard {', '.join(map(str, missing[:8]))} of {proposals.run.shards} is unfinished",
            "Run `vitp generate-proposals` for it first",
        )


Picture = np.ndarray | tuple[np.ndarray, ...]
"""An image as `MaskClassifier.scores` takes it."""
READ_AHEAD = 2
"""Batches whose images are read ahead while the model works on one."""


@dataclass(frozen=True)
class _Batch:
    """Views that go through the model together, and the images whose last view is among them."""

    views: list[PromptedImage]
    finished: tuple[str, ...]

    @property
    def first(self) -> str:
        return self.views[0].record.image_id

    @property
    def last(self) -> str:
        return self.views[-1].record.image_id


class ClassMaker:
    """Make parts of point scores: `point_logits/ID` (query, class) float32, and an index row an image.

    Arrays of further views of an image have the same names as in the proposals.
    """

    def __init__(
        self, run: StageRun, proposals: ProposalStore, dataset: Dataset, classifier: Path, settings: ClassifySettings
    ) -> None:
        self.run, self.proposals, self.dataset, self.settings = run, proposals, dataset, settings
        self.mask_classifier = MaskClassifier(classifier, settings, dataset.spec)
        self.stored: dict[bool, FeatureStore] = {}
        if self.mask_classifier.reads_masks:
            proposals.require_all_masks()
            proposals.require_one_view("mask prompts")

    def store_features(self, shards: Sequence[int]) -> None:
        """Store the features of the images of some shards, where points read the patches, and read them from now on."""
        if (encoder := self.mask_classifier.encoder) is None:
            return
        run, settings = self.proposals.run, self.settings
        features = Features(
            run.store, self.dataset, encoder, run.images, run.shards, settings.flip, settings.feature_cache
        )
        features.make(shards)
        self.stored = features.opened()

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        import pyarrow as pa

        wanted = set(images)
        states = self.proposals.rows(shard, part, ["image_id", "status", "error"])
        reasons = {row["image_id"]: f"no proposals: {row['error']}" for row in states if row["status"] != "ok"}
        unproposed = frozenset(reasons)
        batches = self._batches(shard, part, [row["image_id"] for row in states if row["status"] == "ok"], wanted)
        writer = ArrayWriter(arrays, {"fingerprint": self.run.fingerprint, "shard": shard, "part": part})
        try:
            with self.dataset.reading_ahead(i for i in images if i not in reasons), ThreadPoolExecutor(2) as readers:
                waiting: deque[tuple[_Batch, list[Future[Picture]]]] = deque()
                # of the previous batch: an image is read once for all its views that share a picture
                read: dict[str, Future[Picture]] = {}
                for batch in chain(batches, [None] * READ_AHEAD):
                    if batch is not None:
                        before, read = read, {}
                        names = [self.mask_classifier.picture_of(view.record) for view in batch.views]
                        for name, view in zip(names, batch.views, strict=True):
                            if name not in read:
                                read[name] = before.get(name) or readers.submit(self._picture, view.record)
                        waiting.append((batch, [read[name] for name in names]))
                    if waiting and (batch is None or len(waiting) > READ_AHEAD):
                        ready, pictures = waiting.popleft()
                        reasons |= self._score(ready.views, pictures, writer, wanted)
                        budget.advance(len(wanted.intersection(ready.finished)))
                        if budget.over() and waiting and (following := waiting[0][0].first) != ready.last:
                            readers.shutdown(wait=False, cancel_futures=True)
                            images = _before(following, images, self.run.parts(shard)[part])
                            break
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        budget.advance(len(unproposed.intersection(images)))
        table = [{"image_id": i, "status": "failed" if i in reasons else "ok", "error": reasons.get(i)} for i in images]
        return pa.Table.from_pylist(table, schema=_schema(self.run.fingerprint, self.dataset.spec.class_names))

    def _batches(self, shard: int, part: int, views: Sequence[str], wanted: set[str]) -> Iterator[_Batch]:
        """The batches that hold a view of a wanted image, read lazily. They are cut over the whole
        part, so batches do not depend on which images were finished before.

        Args:
            views: of each view that has proposals its image, in order.
        """
        size = self.settings.batch_size
        starts = {start for start in range(0, len(views), size) if not wanted.isdisjoint(views[start : start + size])}
        shown = {image for start in starts for image in views[start : start + size]}
        places = (place for place, image in enumerate(views) if image in shown)
        last = {image: place for place, image in enumerate(views)}
        records: Iterator[ProposalEntry] = (
            self.proposals.read_part(shard, part, shown, grouped=True)
            if self.mask_classifier.reads_masks
            else self.proposals.read_index(shard, part, shown)
        )
        placed = zip(places, records, strict=True)
        for start, own in groupby(placed, lambda pair: pair[0] - pair[0] % size):
            if start in starts:
                found = [(place, self.mask_classifier.prompted(record)) for place, record in own]
                finished = tuple(v.record.image_id for place, v in found if last[v.record.image_id] == place)
                yield _Batch([view for _, view in found], finished)

    def _picture(self, record: ProposalEntry) -> Picture:
        sample = self.dataset.sample(record.image_id)
        if self.mask_classifier.encoder is not None:
            size, seen = self._source.open(sample)
            _require_size(size, record)
            return self.mask_classifier.seen(seen)
        image = self.dataset.read_image(sample)
        _require_size(size_of(image), record)
        return self.mask_classifier.pictures(image)(record.view)

    @cached_property
    def _source(self) -> FeatureSource:
        from vitp_pipeline.classifier.features.source import FeatureSource

        return FeatureSource(self.dataset, self.mask_classifier.model.image_size, self.stored)

    def _score(
        self, batch: list[PromptedImage], pictures: list[Future[Picture]], writer: ArrayWriter, wanted: set[str]
    ) -> dict[str, str]:
        """Score a batch and store the wanted images; return the reasons of the images that failed."""
        reasons: dict[str, str] = {}
        ready: list[PromptedImage] = []
        images: list[Picture] = []
        for prompted, picture in zip(batch, pictures, strict=True):
            try:
                images.append(picture.result())
                ready.append(prompted)
            except InputError as error:
                reasons[prompted.record.image_id] = error.message
        if not ready:
            return reasons
        for prompted, values in zip(ready, self.mask_classifier.scores(ready, images), strict=True):
            if prompted.record.image_id not in wanted:
                continue
            if np.isfinite(values).all():
                writer.add(f"point_logits/{prompted.record.key}", values, ("query", "class"))
            else:
                reasons[prompted.record.image_id] = NOT_FINITE
        return reasons


def reads_features(classifier: Path) -> bool:
    """Tell if the points of a classifier read the patches, by its configuration alone; False if that is damaged."""
    from vitp_pipeline.classifier.weights import config_of

    try:
        config = config_of(classifier)
    except UserError:
        return False
    return config.point_token == "sampled" and config.prompt == "point"


def _require_size(size: Size, record: ProposalEntry) -> None:
    if size != record.view.original:
        raise InputError(
            f"{record.file_name}: is {size[1]}×{size[0]} now, was {record.view.original[1]}×"
            f"{record.view.original[0]} when its proposals were made"
        )


def _before(image_id: str, images: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return the images that precede one in an order."""
    earlier = set(order[: order.index(image_id)])
    return tuple(image for image in images if image in earlier)


def _schema(fingerprint: str, classes: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    about: dict[str, Any] = {"fingerprint": fingerprint, "classes": list(classes)}
    columns = [("image_id", pa.string()), ("status", pa.string()), ("error", pa.string())]
    return pa.schema(columns, metadata={"vitp": json.dumps(about)})
