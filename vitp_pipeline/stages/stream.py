"""`evaluate --stream`: generator, classifier and fusion image by image, keeping only the counts of an image.

The figures equal those of the four stages: masks are dropped and rounded as they would be on disk.
With several views the masks of one are in memory at a time, beside the running average of class scores, which takes
4 bytes × variants × classes × pixels of the image. Its results are an evaluation's, in RUN/evaluation/FINGERPRINT, with
the same shards, parts and restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.proposals import ProposalRecord, agnostic_identity
from vitp_pipeline.artifacts.run import create_or_check, is_begun
from vitp_pipeline.classifier.mask_classifier import NOT_FINITE, MaskClassifier
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.evaluation.certainty import check_codec
from vitp_pipeline.evaluation.count_tables import CountRows
from vitp_pipeline.evaluation.definition import (
    GENERATE,
    Evaluation,
    Measured,
    check_tasks,
    check_views,
    needs_classifier,
    settle_alpha,
)
from vitp_pipeline.evaluation.image_counts import CountMaker
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.generators.base import is_class_agnostic
from vitp_pipeline.generators.registry import find_source
from vitp_pipeline.geometry import size_of
from vitp_pipeline.stages.classify import classifier_file, name_outside
from vitp_pipeline.stages.generate_proposals import ProposalMaker, load_generator, view_plan
from vitp_pipeline.storage.digests import Digests
from vitp_pipeline.storage.fingerprint import fingerprint
from vitp_pipeline.storage.open_store import Run, open_store

if TYPE_CHECKING:
    import pyarrow as pa


class Stream:
    """An evaluation that computes its own proposals and scores."""

    def __init__(
        self,
        recipe: Recipe,
        generate: ProposalSettings,
        classify: ClassifySettings,
        settings: EvaluateSettings,
        sweep: Sequence[float],
        data_root: Path,
        out: Run,
        shard: ShardChoice,
    ) -> None:
        """Make the evaluation's folder.

        Raises:
            MissingStageError: the run has no classifier.
            UserError: any of its other kinds.
        """
        store = open_store(out)
        self.recipe, self.generate, self.classify = recipe, generate, classify
        self.digests = Digests(store)
        dataset = Dataset(recipe.manifest, data_root, generate.split, generate.limit or None)
        if generate.window:
            view_plan(generate, None)  # refused before the folder is made
        check_tasks(settings, dataset)
        self.source = find_source(generate, lambda text: recipe.find_file(text, data_root))
        agnostic = is_class_agnostic(self.source)
        self.settings = settings = settle_alpha(settings, agnostic, recipe, sweep)
        self.classifier = None
        if needs_classifier(settings, sweep):
            self.classifier = classifier_file(recipe, classify, data_root, store)
        measured = Measured.of(settings, classify, sweep, agnostic)

        stream = {
            "manifest": recipe.manifest.identity(),
            "generator": self.source.identity(self.digests),
            GENERATE: identity_of(generate),
            **self._classified(),
            **agnostic_identity(agnostic),
        }
        identity = {"stage": "evaluation", "stream": stream, **measured.identity}
        folder = store.folder / "evaluation" / fingerprint(identity)[:12]
        if not is_begun(store, folder):
            shard.for_new_run()
        images = dataset.image_ids
        named = name_outside(store, self.classifier) if self.classifier else ""
        plan = images, shard.count, generate.part_size
        run = create_or_check(store, folder, identity, *plan, classifier=named)
        self.evaluation: Evaluation = measured.evaluation(run, None, dataset)
        check_codec(self.evaluation.codec, settings, self.evaluation.tasks)

    def _classified(self) -> dict[str, Any]:
        if self.classifier is None:
            return {}
        return {"classifier": self.digests.of(self.classifier), "classify": identity_of(self.classify)}

    def shards(self, shards: Sequence[int], retry_failed: bool = False) -> Outcome:
        """Measures the images of some shards."""
        from vitp_pipeline.evaluation.summary import keep_shard_totals

        return run_parts(
            self.evaluation.run,
            shards,
            lambda: StreamMaker(self),
            "evaluate --stream",
            retry_failed,
            lambda shard: keep_shard_totals(self.evaluation, shard),
        )


class StreamMaker:
    """Makes parts of an evaluation: one row of counts an image, no arrays."""

    def __init__(self, stream: Stream) -> None:
        evaluation, manifest = stream.evaluation, stream.recipe.manifest
        stream.digests.prove()
        self.dataset = evaluation.dataset
        self.mask_classifier: MaskClassifier | None = None
        if stream.classifier is not None:
            self.mask_classifier = MaskClassifier(stream.classifier, stream.classify, manifest)
        if self.mask_classifier and self.mask_classifier.reads_masks:
            raise UsageError(
                f"{stream.classifier}: is prompted with masks, but --stream classifies points",
                "Run generate-proposals, classify and evaluate for it",
            )
        generator = load_generator(stream.source, stream.generate, manifest)
        self.proposer = ProposalMaker(evaluation.run, self.dataset, generator, stream.generate)
        self.one_view = self.proposer.plan.one_whole
        if not self.one_view:
            check_views(evaluation)
        self.counter = CountMaker(evaluation, stream.settings, stream.classify.points)

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        rows = CountRows(self.counter.evaluation)
        with self.dataset.reading_ahead(images):
            for image_id in images:
                rows.add(image_id, self._row(image_id))
                budget.advance(1)
                if budget.over():
                    break
        return rows.table()

    def _row(self, image_id: str) -> dict[str, Any]:
        try:
            picture = self.dataset.read_image(self.dataset.sample(image_id))
            views = self._views(image_id, picture)
            return self.counter.row(image_id, size_of(picture), views, keep_views=self.one_view)
        except InputError as error:
            return {"error": error.message}

    def _views(self, image_id: str, picture: np.ndarray) -> Iterator[tuple[ProposalRecord, np.ndarray | None]]:
        if self.mask_classifier is None:
            yield from ((record, None) for record in self.proposer.records(image_id, picture))
            return
        pictures = self.mask_classifier.pictures(picture)
        for record in self.proposer.records(image_id, picture):
            (scores,) = self.mask_classifier.scores([self.mask_classifier.prompted(record)], [pictures(record.view)])
            if not np.isfinite(scores).all():
                raise InputError(NOT_FINITE)
            yield record, scores
