"""Stage three: a trained classifier names the point of every mask. Reads images and points, no masks.

The one exception is a classifier prompted with masks (`classifier/mask_prompt.py`), which reads them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.digests import Digests
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.proposals import (
    SEVERAL_POINTS,
    ProposalRecord,
    ProposalStore,
    open_proposals,
    points_of,
)
from vitp_pipeline.artifacts.run import StageRun, create_or_check
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import IncompatibleError, InputError, MissingStageError, UsageError
from vitp_pipeline.fingerprint import fingerprint, identity_of
from vitp_pipeline.geometry import normalise_points
from vitp_pipeline.recipe import ClassifySettings, ProposalSettings, Recipe
from vitp_pipeline.shard import ShardChoice
from vitp_pipeline.stages.driver import Outcome, run_parts

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from vitp_pipeline.classifier.model import PointViT


def classify(
    recipe: Recipe,
    settings: ClassifySettings,
    data_root: Path,
    out: Path,
    shard: ShardChoice,
    retry_failed: bool = False,
) -> Outcome:
    """Scores the points of the proposals and writes RUN/classes/FINGERPRINT.

    Raises:
        MissingStageError: the run has no classifier, or not the proposals of a shard.
        UserError: any of its other kinds.
    """
    proposals = open_proposals(out)
    check_manifest(proposals, recipe)
    classifier = classifier_file(recipe, settings, data_root, out)
    require_shards(proposals, shard)
    run = classes_run(proposals, classifier, settings, out, create=True)
    shards = shard.within(run.shards)
    require_proposals(proposals, shards)
    dataset = Dataset(recipe.manifest, data_root, proposals.run.identity["settings"].get("split", "val"))
    return run_parts(
        run, shards, lambda: ClassMaker(run, proposals, dataset, classifier, settings), "classify", retry_failed
    )


def classifier_file(recipe: Recipe, settings: ClassifySettings, data_root: Path, out: Path) -> Path:
    """The classifier to use. Raises MissingStageError when it has not been trained (to its end)."""
    if settings.classifier:
        return recipe.find_file(settings.classifier, data_root)
    path = out / "classifier" / settings.name / "model.safetensors"
    if not path.exists():
        raise MissingStageError(f"{path}: no trained classifier", "Run `vitp train-classifier` first, or let it finish")
    return path


def classes_run(
    proposals: ProposalStore,
    classifier: Path,
    settings: ClassifySettings,
    out: Path,
    create: bool = False,
) -> StageRun:
    """The folder of the scores of this classifier for these proposals, in the same shards and parts.

    Raises:
        MissingStageError: it is not there and `create` is false.
    """
    identity = {
        "stage": "classes",
        "proposals": proposals.run.fingerprint,
        "classifier": Digests(out).of(classifier),
        "settings": identity_of(settings),
    }
    folder = out / "classes" / fingerprint(identity)[:12]
    if not create and not (folder / "run.json").exists():
        raise MissingStageError(
            f"{folder}: this classifier has not scored these proposals with these settings", "Run `vitp classify` first"
        )
    return create_or_check(folder, identity, proposals.run.images, proposals.run.shards, proposals.run.part_size)


def check_manifest(proposals: ProposalStore, recipe: Recipe) -> None:
    """Raises IncompatibleError when the recipe's manifest is not the one the proposals were made with."""
    if proposals.run.identity["manifest"] != json.loads(json.dumps(recipe.manifest.identity())):
        raise IncompatibleError(
            f"{proposals.run.folder}: made with another manifest than {recipe.manifest.name!r} of {recipe.path.name}",
            "Use the recipe that the run was begun with",
        )


def require_shards(proposals: ProposalStore, shard: ShardChoice) -> None:
    """Raises UsageError when another number of shards is asked for than the proposals have."""
    if shard.count is not None and shard.count != proposals.run.shards:
        raise UsageError(
            f"{proposals.run.folder}: this run has {proposals.run.shards} shards, not {shard.count}",
            f"Use --shard I/{proposals.run.shards}: the number is fixed by the first command on a run",
        )


def require_proposals(proposals: ProposalStore, shards: Sequence[int]) -> None:
    """Raises MissingStageError naming the shards whose proposals are not finished."""
    if missing := [shard for shard in shards if not proposals.run.finished(shard)]:
        raise MissingStageError(
            f"{proposals.run.folder}: shard {', '.join(map(str, missing[:8]))} of {proposals.run.shards} is unfinished",
            "Run `vitp generate-proposals` for it first",
        )


@dataclass(frozen=True)
class PromptedImage:
    """An image of the proposals and what prompts the classifier: (Q, 2) points, n of a mask for "spread", or (Q, P)
    shares of the patches that the masks cover.
    """

    record: ProposalRecord
    prompts: np.ndarray = field(repr=False)


class ClassMaker:
    """Makes parts of point scores: `point_logits/ID` (query, class) float32, and an index row an image."""

    def __init__(
        self, run: StageRun, proposals: ProposalStore, dataset: Dataset, classifier: Path, settings: ClassifySettings
    ) -> None:
        from vitp_pipeline.classifier.predict import average_of
        from vitp_pipeline.classifier.weights import load_classifier
        from vitp_pipeline.devices import choose_device
        from vitp_pipeline.stages.proposals import check_classes

        self.run, self.proposals, self.dataset, self.settings = run, proposals, dataset, settings
        self.device = choose_device(settings.device)
        self.model: PointViT = load_classifier(classifier).to(self.device)
        made_with = proposals.run.identity["settings"]
        self.reads_masks = self.model.config.prompt == "mask"
        self.points_per_mask = 1
        if self.reads_masks:
            proposals.require_all_masks()
        elif settings.points in SEVERAL_POINTS:
            self.points_per_mask = made_with.get(settings.points, getattr(ProposalSettings, settings.points))
        self.average = average_of(settings.points, settings.average)
        self.point_temperature = fitted_temperature(self.model, classifier) if settings.calibrated else 1.0
        check_classes(self.model.classes, f"classifier {classifier.name}", dataset.spec)

    def make(
        self, shard: int, part: int, images: Sequence[str], arrays: Path, advance: Callable[[int], None]
    ) -> pa.Table:
        import pyarrow as pa

        rows = {row["image_id"]: row for row in self.proposals.rows(shard, part)}
        records = [self._prompted(r) for r in self.proposals.read_part(shard, part, masks=self.reads_masks)]
        reasons = {i: f"no proposals: {row['error']}" for i, row in rows.items() if row["status"] != "ok"}
        writer = ArrayWriter(arrays, {"fingerprint": self.run.fingerprint, "shard": shard, "part": part})
        try:
            with ThreadPoolExecutor(2) as readers:
                # two batches ahead: pictures are read while the model works
                size = self.settings.batch_size
                batches = [records[first : first + size] for first in range(0, len(records), size)]
                waiting: list[tuple[list[PromptedImage], list[Future]]] = []
                for batch in [*batches, None, None]:
                    if batch is not None:
                        waiting.append((batch, [readers.submit(self._picture, image.record) for image in batch]))
                    if waiting and (batch is None or len(waiting) > 2):
                        ready, pictures = waiting.pop(0)
                        reasons |= self._score(ready, pictures, writer)
                        advance(len(ready))
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        if len(images) > len(records):
            advance(len(images) - len(records))
        table = [{"image_id": i, "status": "failed" if i in reasons else "ok", "error": reasons.get(i)} for i in images]
        return pa.Table.from_pylist(table, schema=_schema(self.run.fingerprint, self.dataset.spec.class_names))

    def _prompted(self, record: ProposalRecord) -> PromptedImage:
        from vitp_pipeline.classifier.coverage import mask_coverage

        if not self.reads_masks:
            points = points_of(record, self.settings.points)
            return PromptedImage(record, normalise_points(points, record.view.original))
        coverage = mask_coverage(record.masks, record.view, self.model.grid)
        return PromptedImage(replace(record, masks=None), coverage)

    def _picture(self, record: ProposalRecord) -> np.ndarray:
        from vitp_pipeline.classifier.pixels import prepare_image

        image = self.dataset.read_image(self.dataset.sample(record.image_id))
        if image.shape[:2] != record.view.original:
            raise InputError(
                f"{record.file_name}: is {image.shape[1]}×{image.shape[0]} now, was {record.view.original[1]}×"
                f"{record.view.original[0]} when its proposals were made"
            )
        return prepare_image(image, self.model.image_size)

    def _logits(self, images: torch.Tensor, prompts: list[torch.Tensor], ids: list[str]) -> list[torch.Tensor]:
        """(Nᵢ, K) float32 of the prompts of each image."""
        from vitp_pipeline.classifier.mask_prompt import mask_logits
        from vitp_pipeline.classifier.predict import image_logits, pad_points

        settings = self.settings
        if not self.reads_masks:
            return image_logits(
                self.model, images, prompts, settings.flip, settings.precision, settings.chunk, image_ids=ids
            )
        padded, _ = pad_points(prompts)  # no mask sees another, so what is padded changes none
        logits = mask_logits(self.model, images, padded, settings.flip, settings.precision)
        return [own[: len(masks)] for own, masks in zip(logits, prompts, strict=True)]

    def _score(self, batch: list[PromptedImage], pictures: list[Future], writer: ArrayWriter) -> dict[str, str]:
        """Scores and stores a batch; returns the reasons of the images that failed."""
        import torch

        from vitp_pipeline.classifier.predict import mask_logits_of_points

        reasons, ready, images = {}, [], []
        for prompted, picture in zip(batch, pictures, strict=True):
            try:
                images.append(picture.result())
                ready.append(prompted)
            except InputError as error:
                reasons[prompted.record.image_id] = error.message
        if not ready:
            return reasons
        logits = self._logits(
            torch.from_numpy(np.stack(images)).to(self.device),
            [torch.from_numpy(prompted.prompts).to(self.device) for prompted in ready],
            [prompted.record.image_id for prompted in ready],
        )
        for prompted, scores in zip(ready, logits, strict=True):
            image_id = prompted.record.image_id
            named = mask_logits_of_points(
                scores[None] / self.point_temperature, self.points_per_mask, self.settings.temperature, self.average
            )
            values = named[0].cpu().numpy()
            if np.isfinite(values).all():
                writer.add(f"point_logits/{image_id}", values, ("query", "class"))
            else:
                reasons[image_id] = "the classifier's output is not finite"
        return reasons


def fitted_temperature(model: PointViT, file: Path) -> float:
    """The temperature fitted in training. Raises UsageError when there is none."""
    if model.config.temperature_nll is None:
        raise UsageError(
            f"calibrated = true, but {file} has no fitted temperature",
            "Train one with hold_out = 20 or so, or set `temperature` instead",
        )
    return model.config.temperature_nll


def _schema(fingerprint: str, classes: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    about: dict[str, Any] = {"fingerprint": fingerprint, "classes": list(classes)}
    columns = [("image_id", pa.string()), ("status", pa.string()), ("error", pa.string())]
    return pa.schema(columns, metadata={"vitp": json.dumps(about)})
