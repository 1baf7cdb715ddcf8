"""Run both stages in this process on your own images: no dataset, no run directory, no ground truth.

The results equal those of the four stages for the same image and settings: masks are dropped and rounded as they would
be on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.config.choices import TASKS
from vitp_pipeline.config.files import local_or_remote
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import ClassInfo, DatasetSpec, load_manifest
from vitp_pipeline.datasets.spec import default_color
from vitp_pipeline.decoding.rle import Rle
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.shipped import PACKAGE

if TYPE_CHECKING:
    from vitp_pipeline.classifier.mask_classifier import MaskClassifier
    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.generators.base import Generator
    from vitp_pipeline.geometry import View
    from vitp_pipeline.inference.foreign_masks import ForeignMasks
    from vitp_pipeline.postprocess.panoptic import Segment
    from vitp_pipeline.postprocess.segmenter import FusedView

LIKELY = 0.5
"""Masks with a larger 1 − v are listed, and those of segments."""


class Prediction(NamedTuple):
    """Predicted class of a mask: the likeliest, and its probability ("no object" being counted)."""

    category: int
    score: float


@dataclass(frozen=True)
class ClassifiedMask:
    """A mask of the generator, by number, its point (row, col), and its predicted classes before and after fusion.

    Attributes:
        objectness: 1 − v, the generator's probability that the mask is an object, in [0, 1].
        generator: None of a mask without class scores.
        classifier: None without one.
    """

    query: int
    point: tuple[int, int]
    objectness: float
    generator: Prediction | None
    classifier: Prediction | None
    fused: Prediction


@dataclass(frozen=True)
class Instance:
    """A detected object: class index, score in [0, 1], and run lengths."""

    category: int
    score: float
    mask: Rle = field(repr=False)


@dataclass(frozen=True)
class Segmentation:
    """Segmentation of an image of (H, W) pixels. Tasks that were not asked for are None.

    Attributes:
        classes: K names; class index k means `classes[k]`.
        labels: (H, W) int16 class indices; IGNORE (−1) where no mask has a class.
        ids: (H, W) int32 ids of segments, 0 = none.
        segments: of `ids`; their `masks` are numbers of queries.
        instances: the best first.
        masks: the likely ones and those of segments, by number.
    """

    classes: tuple[str, ...]
    masks: tuple[ClassifiedMask, ...] = field(repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    ids: np.ndarray | None = field(default=None, repr=False)
    segments: tuple[Segment, ...] | None = None
    instances: tuple[Instance, ...] | None = None


def segment(
    image: np.ndarray | str | Path,
    *,
    generator: Generator,
    classifier: PointViT | None = None,
    manifest: DatasetSpec | str | Path | None = None,
    alpha: float = EvaluateSettings.alpha,
    tasks: Sequence[str] = ("semantic", "panoptic"),
    device: str = "auto",
) -> Segmentation:
    """Propose masks for an image, classify their points, fuse both scores and assemble the maps.

    Settings beyond these are arguments of `Predictor`, which also keeps what several images share.

    Args:
        image: RGB uint8 (H, W, 3), or an image file.
        generator: see `load_generator`. classifier: see `load_classifier`; None needs alpha = 0.
        manifest: which classes are things; without one none is, so that objects of a class are one segment.
        alpha: weight of the classifier in [0, 1].
        tasks: some of `TASKS`.
        device: of the classifier and of the maps.
    Raises:
        InputError: the image cannot be read, or the networks' output for it is not finite.
        IncompatibleError: generator, classifier and manifest have different classes.
        UsageError: an unknown or unsupported task; no classifier, and α is not 0.
    """
    spec = load_manifest(manifest) if isinstance(manifest, (str, Path)) else manifest
    classify, evaluate = ClassifySettings(device=device), EvaluateSettings(alpha=float(alpha), device=device)
    predictor = Predictor(generator, classifier, spec, classify=classify, evaluate=evaluate)
    picture = image if isinstance(image, np.ndarray) else read_picture(Path(image))
    return predictor.segment(picture, tasks)


def load_generator(config: str, checkpoint: str | Path = "", device: str = "auto") -> Generator:
    """Load a mask generator, named as in a recipe: an OpenMMLab config, hf:OWNER/NAME, a transformers folder, the
    authors' file of a OneFormer or Mask2Former, or python:FILE.py:CLASS. `{package}` in a path is the installed
    vitp_pipeline; files may be named hf:OWNER/REPO/FILE or https://….

    Args:
        checkpoint: its weights; empty = those of the folder or class, "random" = drawn at random.
    Raises:
        InputError: not found. UsageError: such a generator takes no checkpoint.
    """
    from vitp_pipeline.generators.registry import find_source
    from vitp_pipeline.runtime.devices import choose_device

    source = find_source(ProposalSettings(str(config), str(checkpoint)), _located)
    return source.build(choose_device(device))


def _located(text: str) -> Path:
    path = local_or_remote(text.replace("{package}", str(PACKAGE))).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def plain_spec(classes: Sequence[str], name: str) -> DatasetSpec:
    """Make a manifest from class names alone: label values from 0, no things."""
    infos = tuple(ClassInfo(called, k, False, default_color(k)) for k, called in enumerate(classes))
    return DatasetSpec(name, infos, "semantic-png", (), {})


def _classes_of(generator: Generator, classifier: PointViT | None) -> DatasetSpec:
    """Return the classes if no manifest is given. Raises UsageError when neither network names them."""
    if classifier is not None:
        return plain_spec(classifier.classes, "the classifier's classes")
    if generator.classes is None:
        raise UsageError("the names of the generator's classes are unknown", "Give a manifest")
    return plain_spec(generator.classes, "the generator's classes")


def read_picture(path: Path, content: bytes | None = None) -> np.ndarray:
    """Read a photograph as (H, W, 3) uint8 RGB, rotated upright by its EXIF orientation. Raises InputError.

    Args:
        content: of the file, where it is read already.
    """
    from vitp_pipeline.datasets.images import read_rgb, unread_content, unread_format

    if kind := unread_format(path) if content is None else unread_content(path, content):
        raise InputError(f"{path}: {kind} is not a supported format: convert it to JPEG or PNG")
    return read_rgb(path, content)


class Predictor:
    """A generator and a classifier, ready for any number of images.

    Args:
        generator: of the classes of `spec`, in its order; or masks of another tool in its place, of certain images.
        classifier: loaded, or its file; None where α is 0.
        spec: names the classes, and which are things; None = as the classifier, or without one the generator, names
            them, and no things.
        proposals, classify, evaluate: as in a recipe; of `proposals` what is about views, points and what is kept.
    Raises:
        IncompatibleError: they have different classes.
        UsageError: invalid settings; the class names are unknown; no classifier, and α is not 0; several views of an
            image with masks of another tool.
    """

    def __init__(
        self,
        generator: Generator | ForeignMasks,
        classifier: PointViT | Path | None,
        spec: DatasetSpec | None,
        proposals: ProposalSettings | None = None,
        classify: ClassifySettings | None = None,
        evaluate: EvaluateSettings | None = None,
    ) -> None:
        from vitp_pipeline.classifier.mask_classifier import MaskClassifier
        from vitp_pipeline.classifier.weights import load_classifier
        from vitp_pipeline.evaluation.definition import settle_alpha
        from vitp_pipeline.generators.base import is_class_agnostic
        from vitp_pipeline.inference.foreign_masks import ForeignMasks
        from vitp_pipeline.inference.proposers import GeneratedProposals, ImportedProposals
        from vitp_pipeline.postprocess.segmenter import Segmenter

        self.class_agnostic = is_class_agnostic(generator)
        classify = classify or ClassifySettings()
        evaluate = settle_alpha(evaluate or EvaluateSettings(), self.class_agnostic)
        points = tuple(dict.fromkeys(("max", classify.points)))
        self.proposals = replace(proposals or ProposalSettings(""), points=points)
        if classifier is None and evaluate.alpha:
            alone = "" if self.class_agnostic else ", or alpha = 0: the generator alone"
            raise UsageError("no classifier given", f"Give one{alone}")
        model = load_classifier(classifier) if isinstance(classifier, Path) else classifier
        self.proposer: GeneratedProposals | ImportedProposals
        if isinstance(generator, ForeignMasks):
            self.spec = generator.spec
            self.proposer = ImportedProposals(generator, self.proposals)
        else:
            self.spec = spec or _classes_of(generator, model)
            self.proposer = GeneratedProposals(generator, self.proposals, self.spec, "" if spec else "classifier")
        self.mask_classifier = None if model is None else MaskClassifier(model, classify, self.spec)
        if self.mask_classifier and self.mask_classifier.reads_masks:
            raise UsageError("predict does not support mask-prompted classifiers", 'Train one with prompt = "point"')
        self.alphas = {"fused": evaluate.alpha}
        if not self.class_agnostic:
            self.alphas["generator"] = 0.0
        if model is not None:
            self.alphas["classifier"] = 1.0
        self.segmenter = Segmenter(evaluate, self.spec.things)

    def segment(
        self, image: np.ndarray, tasks: Sequence[str] = ("semantic", "panoptic"), name: str = "image"
    ) -> Segmentation:
        """Segment an image.

        Args:
            image: RGB uint8 (H, W, 3).
            tasks: some of `TASKS`; several views of an image give semantic maps alone.
            name: the image's, for messages and for points that are drawn at random.
        Raises:
            InputError: the networks fail on it.
            Exception: the generator's own, until it has processed one image.
            UsageError: an unknown task, or one that these views or classes do not support.
        """
        self.check_tasks(tasks)
        pictures = self.mask_classifier.pictures(image) if self.mask_classifier else None
        views = [self._view(record, pictures) for record in self.proposer.propose(image, name)]
        return self._assemble(views, tasks)

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raise UsageError when a task is unknown or unsupported."""
        self.segmenter.check_views(self.proposer.one_whole)
        for task in tasks:
            if task not in TASKS:
                raise UsageError(f"task {task!r}", f"Choose among: {', '.join(TASKS)}")
            if task != "semantic" and not self.proposer.one_whole:
                raise UsageError(f"{task} maps need one view of an image", "Leave out scales, flip and window")
        if "instance" in tasks and not self.segmenter.things.any():
            raise UsageError(f"{self.spec.name} has no things, so there are no instances", "Name a manifest that has")

    def _view(self, record: ProposalRecord, pictures: Callable[[View], np.ndarray] | None) -> FusedView:
        """Score a view under each of `alphas`."""
        points = (
            None
            if self.mask_classifier is None or pictures is None
            else self._scores(self.mask_classifier, record, pictures(record.view))
        )
        return self.segmenter.score(record, points, list(self.alphas.values()))

    def _scores(self, mask_classifier: MaskClassifier, record: ProposalRecord, pixels: np.ndarray) -> np.ndarray:
        """Return the classifier's (Q, K) logits."""
        from vitp_pipeline.classifier.mask_classifier import NOT_FINITE

        (scores,) = mask_classifier.scores([mask_classifier.prompted(record)], [pixels])
        if not np.isfinite(scores).all():
            raise InputError(f"{record.file_name}: {NOT_FINITE}")
        return scores

    def _assemble(self, views: list[FusedView], tasks: Sequence[str]) -> Segmentation:
        labels = ids = segments = instances = None
        fused = [view.only(0) for view in views]
        if "semantic" in tasks:
            labels = self.segmenter.semantic(fused)[0]
        if "panoptic" in tasks:
            ids, found = self.segmenter.panoptic(fused[0])[0]
            kept = fused[0].record.kept
            segments = tuple(replace(s, masks=tuple(kept[list(s.masks)].tolist())) for s in found)
        if "instance" in tasks:
            objects = self.segmenter.instances(fused[0])
            best = objects.variants[0]
            instances = tuple(
                Instance(int(k), float(score), rle)
                for rle, k, score in zip(objects.rles(), best.categories, best.scores, strict=True)
            )
        used = {q for s in segments or () for q in s.masks}
        masks = tuple(
            m for view in views if view.record.view.whole for m in _classified(view, tuple(self.alphas), used)
        )
        return Segmentation(self.spec.class_names, masks, labels, ids, segments, instances)


def _classified(view: FusedView, classified_by: Sequence[str], used: set[int]) -> list[ClassifiedMask]:
    """List the masks that likely are objects, and those in `used`, with their classes under every variant."""
    import torch

    objectness = 1 - torch.from_numpy(view.record.class_logits).softmax(1)[:, -1].double().numpy()
    best = view.probs.max(2)
    names: dict[str, list[Prediction]] = {
        name: [Prediction(k, s) for s, k in zip(values, classes, strict=True)]
        for name, values, classes in zip(classified_by, best.values.tolist(), best.indices.tolist(), strict=True)
    }
    points = view.record.points["max"].tolist()
    return [
        ClassifiedMask(
            query=q,
            point=tuple(points[q]),
            objectness=float(objectness[q]),
            generator=names["generator"][q] if "generator" in names else None,
            classifier=names["classifier"][q] if "classifier" in names else None,
            fused=names["fused"][q],
        )
        for q in view.record.kept.tolist()
        if objectness[q] > LIKELY or q in used
    ]
