"""Stage two: train the point classifier on ground-truth points. Needs images and labels, no proposals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.run import StageRun, create_or_check, is_begun, require_same
from vitp_pipeline.classifier.training.sampling import NO_LABEL
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings, TrainSettings
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.errors import IncompatibleError, InputError, MissingStageError, PartialError, UsageError, UserError
from vitp_pipeline.runtime.distributed import ALONE, Distributed
from vitp_pipeline.runtime.progress import counted, say
from vitp_pipeline.runtime.signals import finishing, interruptible
from vitp_pipeline.stages.features import Features, forget_damaged
from vitp_pipeline.storage.atomic_files import refusals
from vitp_pipeline.storage.copies import COPIES, copies_in, keep_copies, restore
from vitp_pipeline.storage.digests import Digests, fetch_classifier, recorded_digest
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.locks import Lock
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import sealed
from vitp_pipeline.storage.temporaries import TEMPORARY

if TYPE_CHECKING:
    import torch

    from vitp_pipeline.artifacts.proposals import ProposalStore
    from vitp_pipeline.classifier.features.patch_features import PatchEncoder
    from vitp_pipeline.classifier.features.source import FeatureSource
    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.training.augmentation import Augmentation
    from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
    from vitp_pipeline.classifier.training.data import PointBatches
    from vitp_pipeline.classifier.training.mask_data import HeldOutMasks
    from vitp_pipeline.classifier.training.validation import HeldOut


@dataclass(frozen=True)
class Training:
    """Outcome of a training, and its folder.

    Attributes:
        made, cached: images that were trained on, now or before.
        failed: (image id, reason) of those that could not be read.
        unlabeled: ids of those without any label.
        classifier: model.safetensors.
    """

    made: int
    cached: int
    failed: list[tuple[str, str]]
    unlabeled: list[str]
    seconds: float
    folder: Path
    fingerprint: str
    classifier: Path

    def report(self) -> None:
        """Report the images that were left out. Raises PartialError when images could not be read."""
        for image_id, reason in [*self.failed, *((i, NO_LABEL) for i in self.unlabeled)][:10]:
            say(f"  skipped: {image_id}: {reason}")
        if self.failed:
            raise PartialError(
                f"train-classifier: trained without {counted(len(self.failed), 'image')} that cannot be read",
                "Fix them and train again under another --name",
            )


def train_classifier(
    recipe: Recipe, settings: TrainSettings, data_root: Path, out: Run, distributed: Distributed = ALONE
) -> Path:
    """Train and report; return the path of model.safetensors.

    Raises:
        PartialError: trained, but without images that could not be read.
        UserError: any of its other kinds.
    """
    store = open_store(out)
    training = train(recipe, settings, data_root, store, distributed)
    if training is not None:
        training.report()
    return store.folder / "classifier" / settings.name / "model.safetensors"


def train(
    recipe: Recipe, settings: TrainSettings, data_root: Path, out: Run, distributed: Distributed = ALONE
) -> Training | None:
    """Train RUN/classifier/NAME, or continue where it was stopped.

    Args:
        distributed: all its processes call this; process 0 writes and returns the outcome, the others None.
    Raises:
        UserError: any of its kinds but PartialError.
    """
    from vitp_pipeline.classifier.training.readable import check_annotations

    store, mixture = open_store(out), settings.mixture
    dataset = Dataset(recipe.manifest, data_root, settings.split)
    dataset.require_truth("train-classifier")
    if not dataset.has_masks and (mixture.kinds != ("boxes",) or settings.hold_out or settings.prompt == "mask"):
        raise UsageError(
            f"split {settings.split!r} of {dataset.spec.name} has boxes only, no masks",
            'Set data = ["boxes"], prompt = "point" and hold_out = 0',
        )
    training, _ = split_samples(dataset.samples, settings.hold_out, settings.hold_out_fold)
    check_schedule(settings, len(training))
    start = _start(recipe, settings, data_root, store)
    weights = _weights(recipe, settings, data_root)
    masks = training_masks(recipe, settings, dataset) if settings.mask_proposals else None
    folder = store.folder / "classifier" / settings.name
    if not distributed.is_main_process:
        if (fingerprint := distributed.share(None)) is not None:
            with finishing():
                _train(dataset, settings, weights, start, masks, store, folder, fingerprint, distributed, None, None)
        return None
    digests = Digests(store)
    digest = digests.of(weights) if isinstance(weights, Path) else weights
    identity = {
        "stage": "classifier",
        "manifest": recipe.manifest.identity(),
        "weights": digest,
        "settings": identity_of(settings),
    }
    if masks is not None:
        identity["masks"] = masks.run.fingerprint
    if start is not None:
        identity["init_from"] = digests.of(start)
    if "coarse" in mixture.kinds and dataset.has_coarse:
        identity["coarse"] = "files of the manifest"
    other = "Train it under another --name, which classify, evaluate and predict then take, too"
    if not is_begun(store, folder):
        with interruptible("nothing is trained yet"):
            check_annotations(dataset, training, settings)
    run = create_or_check(store, folder, identity, dataset.image_ids, instead=other)
    done, began, made = folder / "done.json", time.monotonic(), False
    if store.exists(done):
        distributed.share(None)
        _tidy(run, settings)  # the task that finished it may have been killed before it had
        say(f"train-classifier: nothing to do, {folder} is trained")
    else:
        with finishing(), store.locked(folder / "lock") as lock:
            require_same(run)
            for name in store.list(folder):
                if name.endswith(TEMPORARY):
                    store.remove(folder / name)
            end = copies_in(store, folder).get("done.json")
            if end and not store.exists(done):  # a task was killed just before its end
                restore(store, done, end)
            ended = store.exists(done)  # another task has finished it meanwhile
            if distributed.share(None if ended else run.fingerprint):
                digests.prove()
                _train(dataset, settings, weights, start, masks, store, folder, run.fingerprint, distributed, lock, run)
                made = True
            else:
                _tidy(run, settings)
    known = run.read_done()
    left_out = known["left_out"]
    return Training(
        made=known["images"] if made else 0,
        cached=0 if made else known["images"],
        failed=[(image_id, reason) for image_id, reason in left_out.items() if reason != NO_LABEL],
        unlabeled=[image_id for image_id, reason in left_out.items() if reason == NO_LABEL],
        seconds=time.monotonic() - began if made else 0.0,
        folder=folder,
        fingerprint=run.fingerprint,
        classifier=folder / "model.safetensors",
    )


def _train(
    dataset: Dataset,
    settings: TrainSettings,
    weights: Path | str,
    start: Path | None,
    masks: ProposalStore | None,
    store: RunStore,
    folder: Path,
    fingerprint: str,
    distributed: Distributed,
    lock: Lock | None,
    run: StageRun | None,
) -> None:
    """Build, train, save; done.json lists the images left out, with reasons.

    Args:
        lock, run: of the process that writes.
    """
    from vitp_pipeline.classifier.build import starting_model
    from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
    from vitp_pipeline.classifier.training.readable import require_readable
    from vitp_pipeline.runtime.devices import choose_device

    with _loading(distributed):
        device = distributed.device(choose_device(settings.device))
        training, held_out = split_samples(dataset.samples, settings.hold_out, settings.hold_out_fold)
        try:
            model, origin = starting_model(settings, dataset.spec.class_names, weights, start)
        except UserError:
            if lock:
                _forget_empty(store, folder)
            raise
        about = {
            "fingerprint": fingerprint,
            "manifest": dataset.spec.name,
            "held_out": [sample.image_id for sample in held_out],
            "settings": identity_of(settings),
        }
        files = TrainingFolder(store, folder, about, lock)
    frozen = _frozen(dataset, model.to(device), settings, store, distributed)
    with _loading(distributed):
        batches = _batches(dataset, training, settings, masks, model.grid, frozen, distributed)
        validate = _validation(dataset, held_out, settings, frozen, distributed)
        evaluate = (lambda model: validate(model).figures()) if validate else None
    if distributed.is_main_process:
        say(f"train-classifier: starts {origin}")
    began = time.monotonic()
    try:
        _fit(model, batches, settings, files, device, evaluate, distributed)
        distributed.merge(batches.skipped)
        usable = len(training) - len(batches.skipped)
        if not usable:
            raise InputError(f"{dataset.root}: no image of split {dataset.split!r} could be used for training")
        require_readable(batches.skipped, len(training), dataset)
    except InputError:
        if lock:
            lock.check()
            _forget_empty(store, folder)
        raise
    trained_on = {"images": usable, "left_out": len(batches.skipped)}
    if settings.keep == "best" and (best := files.load_model("best")) is not None:
        if distributed.is_main_process:
            files.save_model(model, "last", trained_on)
        model = best.to(device)
    validation = validate(model) if validate else None
    if frozen is not None and distributed.is_main_process:
        forget_damaged(frozen[1].stored)
    if run is not None and lock is not None:
        lock.check()
        if validation:
            validation.save(store, folder, dataset.spec.class_names)
            if not validation.figures():
                kept = "; the last epoch is kept, not the best" if settings.keep == "best" else ""
                say(f"train-classifier: no held-out image has a labeled pixel, so there are no held-out figures{kept}")
        files.save_model(model, "model", trained_on)
        lock.check()
        _end(run, settings, {"images": usable, "left_out": batches.skipped})
        _tidy(run, settings)
        length = counted(settings.steps, "step") if settings.steps else counted(settings.epochs, "epoch")
        seen = f"{counted(usable, 'image')}, {length}"
        say(f"train-classifier: {seen} in {time.monotonic() - began:.0f} s")
    distributed.wait_for_main_process()


def _forget_empty(store: RunStore, folder: Path) -> None:
    """Remove a training that came to nothing: the corrected one, with other settings or data, may then have its name.
    What was trained is kept: data that cannot be read may be back tomorrow.
    """
    if store.exists(folder / "checkpoint.pt"):
        return
    for name in (COPIES, "run.json", *(name for name in store.list(folder) if name != "lock")):
        store.remove(folder / name)


def _loading(distributed: Distributed) -> contextlib.AbstractContextManager[None]:
    """A signal ends it at once; with several processes all end together, after the first step."""
    return interruptible("nothing is trained yet") if distributed.size == 1 else contextlib.nullcontext()


MODELS = [f"{name}.{suffix}" for name in ("model", "last", "best") for suffix in ("safetensors", "json")]
RESULTS = (*MODELS, "metrics.jsonl", "validation.json", "confusion.npy")
"""Files that a training may leave."""


def _end(run: StageRun, settings: TrainSettings, said: dict[str, Any]) -> None:
    """Commit a training: done.json records the digests of its files; small files are copied before."""
    store, folder, files = run.store, run.folder, run.store.list(run.folder)
    names = [name for name in RESULTS if name in files and name not in _outlived(settings)]
    store.fetch_all(folder / name for name in names)
    digests = {name: recorded_digest(folder / name) or file_digest(folder / name) for name in names}
    said = {**said, "run": run.digest, "bytes": files["model.safetensors"], "files": digests}
    text = sealed(folder / "done.json", said)
    small = [name for name in names if not name.endswith(".safetensors")]
    keep_copies(store, folder, ["run.json", *small], {"done.json": text})
    store.write(folder / "done.json", text)


def _outlived(settings: TrainSettings) -> list[str]:
    best = ["best.safetensors", "best.json"] if settings.keep == "best" else []  # it is the model now
    return ["checkpoint.pt", *best]


def _tidy(run: StageRun, settings: TrainSettings) -> None:
    """Remove the files that a finished training no longer needs."""
    for name in _outlived(settings):
        with refusals(run.folder / name):
            run.store.remove(run.folder / name)


Frozen = tuple["PatchEncoder", "FeatureSource"]
"""Of a training whose backbone is frozen and read by points: what computes the features of images, and where they
are."""


def _frozen(
    dataset: Dataset, model: PointViT, settings: TrainSettings, store: RunStore, distributed: Distributed
) -> Frozen | None:
    """Store the features that a training uses, where it uses features; None where it needs images.

    Raises:
        StoppedError: a signal asked this task to end; what is stored is kept.
    """
    from vitp_pipeline.classifier.features.patch_features import PatchEncoder, reads_patches
    from vitp_pipeline.classifier.features.source import FeatureSource
    from vitp_pipeline.classifier.training.feature_data import only_flips

    if settings.fit != "lda" and settings.backbone_lr != 0:
        return None
    if not reads_patches(model):
        return None
    if not only_flips(_augmentation(settings)):
        if distributed.is_main_process and settings.feature_cache:
            say("features: not stored, crop_scale, rotation or color_jitter makes other images of each at every step")
        return None
    encoder = PatchEncoder(model, settings.precision)
    features = Features(store, dataset, encoder, dataset.image_ids, 1, settings.flip, settings.feature_cache)
    sees_all = not 0 < settings.steps * settings.batch_size < len(dataset.image_ids)
    if distributed.size == 1 and sees_all:  # a training of a few steps would store far more images than it reads
        features.make([0])
    return encoder, FeatureSource(dataset, model.image_size, features.opened())


def _augmentation(settings: TrainSettings) -> Augmentation:
    from vitp_pipeline.classifier.training.augmentation import Augmentation

    return Augmentation(settings.flip, settings.crop_scale, settings.rotation, settings.color_jitter)


def _validation(
    dataset: Dataset, held_out: list[Sample], settings: TrainSettings, frozen: Frozen | None, distributed: Distributed
) -> HeldOut | HeldOutMasks | None:
    """Make what validates on the held-out images; None where there is nothing to validate."""
    from vitp_pipeline.classifier.training.mask_data import HeldOutMasks
    from vitp_pipeline.classifier.training.validation import HeldOut, HeldOutFeatures

    if not held_out or settings.fit == "localize":
        return None
    images = (dataset, held_out, settings.image_size, settings.precision, distributed)
    if settings.prompt == "mask":
        return HeldOutMasks(*images)
    return HeldOut(*images) if frozen is None else HeldOutFeatures(*images, source=frozen[1])


def _batches(
    dataset: Dataset,
    training: list[Sample],
    settings: TrainSettings,
    masks: ProposalStore | None,
    grid: tuple[int, int],
    frozen: Frozen | None,
    distributed: Distributed,
) -> PointBatches:
    """Yield the model's inputs: points or boxes, the masks of the ground truth, or generated ones."""
    from vitp_pipeline.classifier.training.data import PointBatches
    from vitp_pipeline.classifier.training.feature_data import FeatureBatches
    from vitp_pipeline.classifier.training.localize import PlaceBatches
    from vitp_pipeline.classifier.training.mask_data import GeneratedMaskBatches, MaskBatches

    source = (
        dataset,
        training,
        settings.image_size,
        settings.points_per_image,
        settings.batch_size * settings.accumulate,
        _augmentation(settings),
        settings.sampling,
        settings.seed,
        settings.workers,
        settings.mixture,
        settings.coarse_erosion,
    )
    if masks is not None:
        return GeneratedMaskBatches(*source, grid=grid, masks=masks, distributed=distributed)
    if settings.fit == "localize":
        return PlaceBatches(*source, distributed=distributed)
    if settings.prompt == "mask":
        return MaskBatches(*source, grid=grid, distributed=distributed)
    if frozen is not None:
        encoder, images = frozen
        return FeatureBatches(*source, encoder=encoder, source=images, distributed=distributed)
    return PointBatches(*source, distributed=distributed)


def _fit(
    model: PointViT,
    batches: PointBatches,
    settings: TrainSettings,
    files: TrainingFolder,
    device: torch.device,
    evaluate: Callable[[PointViT], dict[str, float]] | None,
    distributed: Distributed,
) -> None:
    """Train `model` by gradients, with labels or without, or fit its head in closed form."""
    import torch

    from vitp_pipeline.classifier.training.feature_data import FeatureBatches
    from vitp_pipeline.classifier.training.lda import LdaTrainer
    from vitp_pipeline.classifier.training.localize import Localizer
    from vitp_pipeline.classifier.training.loop import HeadTrainer, Trainer
    from vitp_pipeline.classifier.training.prior import log_prior

    if settings.fit == "localize":
        Localizer(model, batches, settings, files, device, None, evaluate, distributed).run()
        return
    if settings.fit == "lda":
        LdaTrainer(model, batches, settings, files, device, evaluate, distributed).run()
        return
    prior = None
    if settings.class_prior:
        prior = settings.class_prior * torch.from_numpy(log_prior(batches, distributed))
    trainer = HeadTrainer if isinstance(batches, FeatureBatches) else Trainer
    trainer(model, batches, settings, files, device, prior, evaluate, distributed).run()


def check_schedule(settings: TrainSettings, images: int) -> None:
    """Raise UsageError when training on so many images ends before the learning rate has reached its peak."""
    steps = settings.total_steps(-(-images // (settings.batch_size * settings.accumulate)))
    if settings.fit == "gradient" and settings.warmup_steps >= steps:
        length = f"{images} images in {settings.epochs} epochs are" if settings.epochs else "the training has"
        raise UsageError(
            f"warmup_steps = {settings.warmup_steps}: {length} {steps} steps, so the learning rate would not reach lr",
            f"Lower it, train longer, or give warmup = {TrainSettings.warmup} in its place",
        )


def split_samples(samples: Sequence[Sample], hold_out: int, fold: int = 0) -> tuple[list[Sample], list[Sample]]:
    """(training, held-out) samples. The held-out ones do not depend on the training's seed; those of different folds
    are disjoint.

    Raises:
        UsageError: nothing would be left to train on, or there are not so many folds.
    """
    if hold_out >= len(samples):
        raise UsageError(f"hold_out = {hold_out} leaves none of {len(samples)} images to train on")
    if fold and (fold + 1) * hold_out > len(samples):
        raise UsageError(f"hold_out_fold = {fold}: {len(samples)} images have no {fold + 1} folds of {hold_out}")
    order = np.random.default_rng(0).permutation(len(samples))[::-1]
    held = set(order[fold * hold_out : (fold + 1) * hold_out].tolist())
    training = [s for i, s in enumerate(samples) if i not in held]
    return training, [s for i, s in enumerate(samples) if i in held]


def training_masks(recipe: Recipe, settings: TrainSettings, dataset: Dataset) -> ProposalStore:
    """The proposals of the training split whose masks are to be learned.

    Raises:
        MissingStageError: they are not there, or not finished.
        IncompatibleError: of other images or classes, or not all masks are stored.
    """
    from vitp_pipeline.artifacts.proposals import open_proposals
    from vitp_pipeline.stages.classify import check_manifest, require_proposals

    masks = open_proposals(settings.mask_proposals)
    check_manifest(masks, recipe)
    masks.require_all_masks()
    masks.require_one_view("masks to learn from")
    split = masks.run.identity["settings"].get("split", ProposalSettings.split)
    hint = f'Generate proposals with split = "{settings.split}" under an --out of their own'
    if split != settings.split:
        raise IncompatibleError(f"{masks.run.folder}: proposals of split {split!r}, not {settings.split!r}", hint)
    if lacking := set(dataset.image_ids) - set(masks.run.images):
        raise IncompatibleError(
            f"{masks.run.folder}: has no proposals of {len(lacking)} images of split {settings.split!r}", hint
        )
    require_proposals(masks, range(masks.run.shards))
    return masks


def _weights(recipe: Recipe, settings: TrainSettings, data_root: Path) -> Path | str:
    if settings.weights in ("", "hub"):
        return settings.weights or "from scratch"
    return recipe.find_file(settings.weights, data_root)


def _start(recipe: Recipe, settings: TrainSettings, data_root: Path, store: RunStore) -> Path | None:
    """The classifier to start from; a released file is converted first.

    Raises:
        MissingStageError: the training of that classifier has not finished.
        InputError: a file that does not exist.
    """
    from vitp_pipeline.classifier.released_files import as_classifier
    from vitp_pipeline.config.classify import RELEASED

    text = settings.init_from
    if not text:
        return None
    if "/" in text or text.endswith((".safetensors", *RELEASED)):
        return as_classifier(recipe.find_file(text, data_root), recipe.manifest.class_names, others=True)
    path = store.folder / "classifier" / text / "model.safetensors"
    if not store.exists(path):
        raise MissingStageError(f"{path}: no trained classifier to start from", f"Train it first, with --name {text}")
    return fetch_classifier(store, path)
