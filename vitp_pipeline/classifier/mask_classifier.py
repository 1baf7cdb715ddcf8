"""Classify the masks of stored proposals: prompts of a view, pixels of its image, class logits of its masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.artifacts.proposals import ProposalEntry, ProposalRecord, points_of
from vitp_pipeline.config.settings import ClassifySettings
from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.datasets.spec import check_classes
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.geometry import View, normalize_cells, normalize_in_view, normalize_points

if TYPE_CHECKING:
    import torch

    from vitp_pipeline.classifier.features.source import Seen
    from vitp_pipeline.classifier.model import PointViT

NOT_FINITE = "the classifier's output is not finite"


@dataclass(frozen=True)
class PromptedImage:
    """A view of an image in the proposals and what prompts the classifier: (Q·n, 2) points, n per mask, or
    (Q, P) shares of the patches that the masks cover.
    """

    record: ProposalEntry
    prompts: np.ndarray = field(repr=False)
    per_mask: int = 1


class MaskClassifier:
    """A classifier of the masks of proposals, each view's by its points on the whole upright image, or in the frame
    that the settings say.

    Args:
        classifier: its file, or a loaded one.
    Raises:
        IncompatibleError: its classes are not those of `spec`, its head was never trained, or it is prompted with masks
            and the settings want another frame than the image.
    """

    def __init__(self, classifier: Path | PointViT, settings: ClassifySettings, spec: DatasetSpec) -> None:
        from vitp_pipeline.classifier.features.patch_features import PatchEncoder, reads_patches
        from vitp_pipeline.classifier.inference import average_of
        from vitp_pipeline.classifier.weights import load_classifier
        from vitp_pipeline.runtime.devices import choose_device

        self.settings = settings
        self.device = choose_device(settings.device)
        model = load_classifier(classifier) if isinstance(classifier, Path) else classifier
        name = f"classifier {classifier.name}" if isinstance(classifier, Path) else "the classifier"
        if not any(parameter.any() for parameter in model.head.parameters()):
            raise IncompatibleError(
                f"{name}: was localized only, it names no class yet",
                'Train it further: fit = "lda" or "gradient", init_from = its name, and another --name',
            )
        self.model: PointViT = model.to(self.device)
        whole = settings.frame != "view"  # otherwise it is another picture for every view
        self.encoder = PatchEncoder(self.model, settings.precision) if whole and reads_patches(self.model) else None
        self.reads_masks = self.model.config.prompt == "mask"
        if self.reads_masks and settings.frame != "image":
            raise IncompatibleError(
                f"{name}: is prompted with masks, which have no frame = {settings.frame!r}",
                'Set frame = "image" in [classify]',
            )
        self.average = average_of(settings.points, settings.average)
        check_classes(self.model.classes, name, spec)

    def prompted(self, record: ProposalEntry) -> PromptedImage:
        from vitp_pipeline.classifier.training.mask_coverage import mask_coverage

        if not self.reads_masks:
            points = points_of(record, self.settings.points)
            per_mask = max(1, len(points) // max(1, len(record.points["max"])))
            return PromptedImage(record, self._coordinates(points, record.view), per_mask)
        assert isinstance(record, ProposalRecord), "its masks are not read"
        if record.groups is None:
            coverage = mask_coverage(record.masks, record.view, self.model.grid)
        else:
            each = [mask_coverage(mask[None], record.view, self.model.grid) for mask in record.each_mask()]
            coverage = np.concatenate([np.zeros((0, math.prod(self.model.grid)), np.float32), *each])
        return PromptedImage(record.entry, coverage)

    def _coordinates(self, points: np.ndarray, view: View) -> np.ndarray:
        """(..., 2) pixels of the original to the model's coordinates in the frame of the settings."""
        if self.settings.frame == "view":
            return normalize_in_view(points, view)
        if self.settings.frame == "cells":
            return normalize_cells(points, view)
        return normalize_points(points, view.original)

    def pictures(self, image: np.ndarray) -> Callable[[View], np.ndarray]:
        """Prepare an image, (H, W, 3) RGB uint8, for the model: view → its (3, height, width).

        uint8, the same for all views, or in the frame of the view float32 (`prepare_view`).
        """
        from vitp_pipeline.classifier.preprocess import prepare_image, prepare_view

        size = self.model.image_size
        if self.settings.frame == "view":
            return lambda view: prepare_view(image, view, size)
        pixels = prepare_image(image, size)
        return lambda view: pixels

    def picture_of(self, record: ProposalEntry) -> str:
        """Name the picture of a view: views of the same name have the same."""
        return record.key if self.settings.frame == "view" else record.image_id

    def seen(self, give: Seen) -> tuple[np.ndarray, ...]:
        """Take what the frozen backbone sees of an image, and with `flip` of its mirror image: features or pixels."""
        return tuple(give(mirrored) for mirrored in ((False, True) if self.settings.flip else (False,)))

    def scores(
        self, batch: Sequence[PromptedImage], images: Sequence[np.ndarray | tuple[np.ndarray, ...]]
    ) -> list[np.ndarray]:
        """Logits of the masks of each view, (Q, K) float32; they may be not finite.

        Args:
            images: of each view what `pictures` gives or, where points read the patches of a frozen backbone
                (`encoder`), what `seen` does.
        """
        import torch

        from vitp_pipeline.classifier.inference import mask_logits_of_points

        prompts = [torch.from_numpy(prompted.prompts).to(self.device) for prompted in batch]
        if self.encoder is None:
            pixels = torch.from_numpy(np.stack([image for image in images if isinstance(image, np.ndarray)]))
            logits = self._logits(pixels.to(self.device), prompts, [prompted.record.key for prompted in batch])
        else:
            logits = [self._read(image, points) for image, points in zip(images, prompts, strict=True)]
        settings = self.settings
        return [
            mask_logits_of_points(own[None], of.per_mask, settings.temperature, self.average)[0].cpu().numpy()
            for of, own in zip(batch, logits, strict=True)
        ]

    def _read(self, image: np.ndarray | tuple[np.ndarray, ...], points: torch.Tensor) -> torch.Tensor:
        """(N, K) float32 of points that read the patches of an image."""
        import torch

        from vitp_pipeline.classifier.features.patch_features import feature_logits

        assert self.encoder is not None
        if isinstance(image, np.ndarray):
            pixels = image
            image = self.seen(lambda mirrored: pixels[:, :, ::-1] if mirrored else pixels)
        found = [torch.from_numpy(self.encoder.features(seen)).to(self.device) for seen in image]
        return feature_logits(
            self.model, found[0], points, found[1] if self.settings.flip else None, self.settings.precision
        )

    def _logits(self, images: torch.Tensor, prompts: list[torch.Tensor], ids: list[str]) -> list[torch.Tensor]:
        """(Nᵢ, K) float32 of the prompts of each image."""
        from vitp_pipeline.classifier.inference import image_logits, pad_points
        from vitp_pipeline.classifier.mask_prompt import mask_logits

        settings = self.settings
        if not self.reads_masks:
            return image_logits(
                self.model, images, prompts, settings.flip, settings.precision, settings.chunk, image_ids=ids
            )
        padded, _ = pad_points(prompts)  # masks do not see each other, so padding changes none
        logits = mask_logits(self.model, images, padded, settings.flip, settings.precision)
        return [own[: len(masks)] for own, masks in zip(logits, prompts, strict=True)]
