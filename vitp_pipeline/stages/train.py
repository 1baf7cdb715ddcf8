"""Stage two: train the point classifier on ground-truth points. Needs images and labels, no proposals."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.artifacts.digests import Digests
from vitp_pipeline.artifacts.files import TEMPORARY, locked, read_json, write_json
from vitp_pipeline.artifacts.run import create_or_check
from vitp_pipeline.classifier.sampling import NO_LABEL
from vitp_pipeline.datasets import IGNORE, Dataset, Sample
from vitp_pipeline.errors import InputError, PartialError, UsageError
from vitp_pipeline.fingerprint import identity_of
from vitp_pipeline.progress import say
from vitp_pipeline.recipe import Recipe, TrainSettings

HELD_OUT_POINTS, HELD_OUT_SPREAD = 250, 16

if TYPE_CHECKING:
    from vitp_pipeline.classifier.model import PointViT


def train_classifier(recipe: Recipe, settings: TrainSettings, data_root: Path, out: Path) -> Path:
    """Trains RUN/classifier/NAME, or carries on where it was stopped.

    Returns:
        The path of model.safetensors.
    Raises:
        PartialError: trained, but without images that could not be read.
        UserError: any of its other kinds.
    """
    dataset = Dataset(recipe.manifest, data_root, settings.split)
    weights = _weights(recipe, settings, data_root)
    digest = Digests(out).of(weights) if isinstance(weights, Path) else weights
    identity = {
        "stage": "classifier",
        "manifest": recipe.manifest.identity(),
        "weights": digest,
        "settings": identity_of(settings),
    }
    folder = out / "classifier" / settings.name
    run = create_or_check(folder, identity, tuple(s.image_id for s in dataset.samples))
    done = folder / "done.json"
    if done.exists():
        say(f"train-classifier: nothing to do, {folder} is trained")
    else:
        with locked(folder / "lock"):
            for leaving in folder.glob(f"*{TEMPORARY}"):
                leaving.unlink()
            if not done.exists():  # else another task has finished it meanwhile
                _train(dataset, settings, weights, folder, run.fingerprint)
            (folder / "lock").unlink(missing_ok=True)
    _report_left_out(read_json(done)["left_out"])
    return folder / "model.safetensors"


def _report_left_out(left_out: dict[str, str]) -> None:
    """Raises PartialError when images could not be read; those without any label are only named."""
    for image_id, reason in list(left_out.items())[:10]:
        say(f"  left out: {image_id}: {reason}")
    unreadable = sum(reason != NO_LABEL for reason in left_out.values())
    if unreadable:
        raise PartialError(
            f"train-classifier: trained without {unreadable} images that cannot be read",
            "Mend them and train again under another --name",
        )


def _train(dataset: Dataset, settings: TrainSettings, weights: Path | str, folder: Path, fingerprint: str) -> None:
    """Builds, trains, saves; done.json says what was left out, and why."""
    import torch

    from vitp_pipeline.classifier.augment import Augmentation
    from vitp_pipeline.classifier.calibration import held_out_temperature
    from vitp_pipeline.classifier.data import PointBatches
    from vitp_pipeline.classifier.discriminant import DiscriminantTrainer
    from vitp_pipeline.classifier.folder import TrainingFolder
    from vitp_pipeline.classifier.train import Trainer
    from vitp_pipeline.classifier.weights import save_classifier
    from vitp_pipeline.devices import choose_device

    training, held_out = split_samples(dataset.samples, settings.hold_out, settings.hold_out_fold)
    torch.manual_seed(settings.seed)
    model = build_model(settings, dataset.spec.class_names)
    _load_weights(model, settings, weights)
    augmentation = Augmentation(settings.flip, settings.crop_scale, settings.rotation, settings.color_jitter)
    batches = PointBatches(
        dataset,
        training,
        settings.image_size,
        settings.points_per_image,
        settings.batch_size,
        augmentation,
        settings.sampling,
        settings.seed,
        settings.workers,
    )
    device = choose_device(settings.device)
    evaluate = _held_out_accuracy(dataset, held_out, settings) if held_out else None
    files = TrainingFolder(folder)
    began = time.monotonic()
    if settings.fit == "discriminant":
        DiscriminantTrainer(model, batches, settings, files, device, evaluate).run()
    else:
        prior = torch.from_numpy(_log_prior(dataset, training, settings)) if settings.class_prior else None
        Trainer(model, batches, settings, files, device, prior, evaluate).run()
    usable = len(training) - len(batches.skipped)
    if not usable:
        raise InputError(f"{dataset.root}: no image of split {dataset.split!r} could be used for training")
    if held_out:
        temperature = held_out_temperature(model, dataset, held_out, HELD_OUT_POINTS, settings.precision)
        model.config = replace(model.config, temperature_nll=temperature)
    about = {
        "fingerprint": fingerprint,
        "manifest": dataset.spec.name,
        "images": usable,
        "left_out": len(batches.skipped),
        "held_out": [sample.image_id for sample in held_out],
        "settings": identity_of(settings),
    }
    save_classifier(model.cpu(), folder / "model.safetensors", about)
    write_json(folder / "done.json", {"images": usable, "left_out": batches.skipped})
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    say(f"train-classifier: {usable} images, {settings.epochs} epochs in {time.monotonic() - began:.0f} s")


def split_samples(samples: list[Sample], hold_out: int, fold: int = 0) -> tuple[list[Sample], list[Sample]]:
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


def build_model(settings: TrainSettings, classes: tuple[str, ...]) -> PointViT:
    """The untrained model that the settings describe."""
    from vitp_pipeline.classifier.model import ModelConfig, PointViT

    return PointViT(
        ModelConfig(
            backbone=settings.backbone,
            classes=classes,
            image_size=(settings.image_size[0], settings.image_size[1]),
            backbone_args=settings.backbone_args,
            depth=settings.depth,
            taps=settings.taps,
            point_token=settings.point_token,
            attention=settings.attention,
            head=settings.head,
            norm=settings.norm,
            dropout=settings.dropout,
            drop_path=settings.drop_path,
        )
    )


def _weights(recipe: Recipe, settings: TrainSettings, data_root: Path) -> Path | str:
    if settings.weights in ("", "hub"):
        return settings.weights or "from scratch"
    return recipe.find_file(settings.weights, data_root)


def _load_weights(model: PointViT, settings: TrainSettings, weights: Path | str) -> None:
    from vitp_pipeline.classifier.model import load_backbone_weights
    from vitp_pipeline.classifier.weights import read_backbone

    if isinstance(weights, Path):
        load_backbone_weights(model, read_backbone(weights), weights.name)
    elif weights == "hub":
        import timm

        try:
            hub = timm.create_model(settings.backbone, pretrained=True, num_classes=0)
        except Exception as error:  # no network, no such weights, no room: all said by the hub in its own way
            raise InputError(
                f"{settings.backbone}: its weights could not be fetched ({str(error).splitlines()[0]})",
                "Give a local file as `weights`",
            ) from error
        load_backbone_weights(model, hub.state_dict(), settings.backbone)


def _held_out_accuracy(dataset: Dataset, held_out: list[Sample], settings: TrainSettings):
    """A function that names ground truth of the held-out images with a model, and gives the shares that are right.

    `held_out_accuracy`, `held_out_class_accuracy`: of 250 class-balanced points an image, over points and over classes.
    `held_out_regions_centre`, `held_out_regions_spread`: of class regions of 0.2 % of the image or more, named by their
    innermost pixel, or by the mean probability of 16 random ones, as masks are with the points `centre` and `spread`.
    """
    import torch
    from scipy.ndimage import distance_transform_edt

    from vitp_pipeline.classifier.data import read_pair
    from vitp_pipeline.classifier.pixels import prepare_image
    from vitp_pipeline.classifier.predict import point_logits
    from vitp_pipeline.classifier.sampling import sample_points
    from vitp_pipeline.geometry import normalise_points

    fixed = []
    for index, sample in enumerate(held_out):
        image, labels = read_pair(dataset, sample)
        rng = np.random.default_rng([1, index])
        drawn = sample_points(labels, HELD_OUT_POINTS, rng)
        if drawn is None:
            continue
        points, regions = [drawn[0]], []
        for k in np.unique(labels[labels != IGNORE]):
            inside = labels == k
            if inside.mean() >= 0.002:
                depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
                chosen = rng.choice(np.flatnonzero(inside), HELD_OUT_SPREAD)
                pixels = np.concatenate([[depth.argmax()], chosen])
                points.append(np.stack(np.divmod(pixels, labels.shape[1]), 1))
                regions.append(int(k))
        where = torch.from_numpy(normalise_points(np.concatenate(points), labels.shape))[None]
        fixed.append((torch.from_numpy(prepare_image(image, settings.image_size))[None], where, drawn[1], regions))

    def evaluate(model: PointViT) -> dict[str, float]:
        if not fixed:
            return {}  # none of the held-out images has a label
        device, truth, guess, centre, spread = model.mean.device, [], [], [], []
        for image, where, classes, regions in fixed:
            logits = point_logits(model, image.to(device), where.to(device), precision=settings.precision)[0]
            guess.append(logits[:HELD_OUT_POINTS].argmax(-1).cpu().numpy())
            truth.append(classes)
            probs = logits[HELD_OUT_POINTS:].softmax(-1).view(len(regions), 1 + HELD_OUT_SPREAD, -1).cpu()
            centre += (probs[:, 0].argmax(-1) == torch.tensor(regions)).tolist()
            spread += (probs[:, 1:].mean(1).argmax(-1) == torch.tensor(regions)).tolist()
        right, of = np.concatenate(guess) == np.concatenate(truth), np.concatenate(truth)
        by_class = [float(right[of == k].mean()) for k in np.unique(of)]
        return {
            "held_out_accuracy": float(right.mean()),
            "held_out_class_accuracy": float(np.mean(by_class)),
            "held_out_regions_centre": float(np.mean(centre)),
            "held_out_regions_spread": float(np.mean(spread)),
        }

    return evaluate


def _log_prior(dataset: Dataset, training: list[Sample], settings: TrainSettings) -> np.ndarray:
    """(K,) float32: `class_prior` · log of each class's share of class-balanced points, add-one smoothed, mean 0."""
    share = np.ones(len(dataset.spec.classes))
    for sample in training:
        try:
            present = np.unique(dataset.read_semantic(sample))
        except InputError:
            continue  # reported when training reads it
        present = present[present != IGNORE]
        share[present] += settings.points_per_image / max(1, len(present))
    log = np.log(share / share.sum())
    return (settings.class_prior * (log - log.mean())).astype(np.float32)
