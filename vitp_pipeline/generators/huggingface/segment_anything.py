"""Masks without classes from Segment Anything's models in transformers 5, at a grid of points.

The networks are the library's: SAM, SAM-HQ, SAM 2, SAM 3's tracker and EdgeTAM. Which masks are kept is said in
`automatic_masks`. SAM and SAM-HQ see an image with its longer side resized to the network's, padded to a square; the
others see it resized to the square itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.generators.base import Output, objectness_logits
from vitp_pipeline.generators.frame_size import resize_bilinear
from vitp_pipeline.generators.huggingface.adapter import load_model
from vitp_pipeline.generators.huggingface.automatic_masks import (
    CropGeometry,
    CropMasks,
    on_canvas,
    select,
    suppress,
)
from vitp_pipeline.generators.huggingface.folder import NETWORKS, Pretrained, normalization
from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid
from vitp_pipeline.geometry import Size, Window, size_of

PADS = {"sam", "sam_hq"}
"""Networks that see an image undistorted in a padded square."""


class SegmentAnythingGenerator:
    """A frozen model of the Segment Anything family, asked for masks at every point of a grid, in float32.

    The number Q of masks differs from image to image, and may be 0. Class logits are (Q, 2): object, with the
    probability predicted IoU (cut to [0, 1]) × stability, and no object. Masks come by descending predicted IoU.

    Attributes:
        name: of the model's folder.
        classes: None.
        class_agnostic: True.
        protocol: "d2".
        grid: points, crops and thresholds.
        num_queries: masks that the whole image is asked for. num_classes: 0.
        crop_size: (height, width) of the network's input.
        describe: one line for people: which network, which weights, which device.
    """

    class_agnostic = True

    def __init__(
        self,
        model: Pretrained,
        device: str | torch.device = "cpu",
        seed: int = 0,
        grid: PromptGrid | None = None,
    ) -> None:
        """Build the network and load its weights.

        Args:
            model: a folder, or a config.json for random weights drawn from `seed`.
        Raises:
            InputError: the model is missing or unreadable.
            IncompatibleError: weights and configuration do not match, or its input is no square.
            UserError: transformers is not installed.
        """
        self.device = torch.device(device)
        self.name = model.folder.name
        self.grid = grid or PromptGrid()
        self._model = load_model(model, seed).to(self.device)
        side = self._model.config.prompt_encoder_config.image_size
        if not isinstance(side, int):
            raise IncompatibleError(f"{model.config}: prompt_encoder_config has image_size {side}, not one number")
        self._side = side
        self._pads = model.model_type in PADS
        self._mean, self._std = (
            255 * torch.tensor(values, device=self.device)[:, None, None] for values in normalization(model)
        )
        self.classes: tuple[str, ...] | None = None
        self.protocol = "d2"
        self.num_queries, self.num_classes = self.grid.masks_of_whole, 0
        self.crop_size: Size = (side, side)
        origin = f"weights of {model.folder.name}" if model.weights else f"random weights (seed {seed})"
        self.describe = (
            f"{NETWORKS[model.model_type]} of transformers, {self.grid.points_per_side}×{self.grid.points_per_side} "
            f"points, {self.grid.crop_n_layers} layers of crops, masks without classes, {origin}, on {self.device}"
        )

    @property
    def parameters(self) -> int:
        """Count the network's parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Resize an image to the network's input times `scale`; see `Generator.resize`. With crops a larger image is
        kept larger, up to what the smallest crops need.
        """
        if image.ndim != 3:
            raise InputError(f"an image must be RGB uint8 (H, W, 3), not {image.dtype} {image.shape}")
        size, side = size_of(image), self._side
        if self.grid.crop_n_layers:
            longest = min(max(side, *size), side * self.grid.enlargement)
            return resize_bilinear(image, _longest_edge(size, longest * scale))
        if self._pads:
            return resize_bilinear(image, _longest_edge(size, side * scale))
        edge = max(1, int(side * scale + 0.5))
        return resize_bilinear(image, (edge, edge))

    @torch.inference_mode()
    def forward(self, frames: Sequence[np.ndarray]) -> list[Output]:
        """Run the network on frames, one by one; see `Generator.forward`."""
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return [self._masks(np.ascontiguousarray(frame)) for frame in frames]

    def _masks(self, frame: np.ndarray) -> Output:
        size = size_of(frame)
        span = (max(size), max(size)) if self._pads else size
        found: list[tuple[CropGeometry, CropMasks]] = []
        for layer, (top, left, height, width) in self.grid.crops(size):
            pixels = frame[top : top + height, left : left + width]
            geometry, masks = self._crop(pixels, size, (top, left, height, width), self.grid.points(layer))
            if not bool(torch.isfinite(masks.scores).all()):
                return self._not_finite(masks, span)
            found.append((geometry, masks))
        cell = found[0][1].logits.shape[1:]
        canvas = (cell[0] * self.grid.enlargement, cell[1] * self.grid.enlargement)
        boxes, scores, stability = (
            torch.cat([getattr(masks, name) for _, masks in found]) for name in ("boxes", "scores", "stability")
        )
        kept = suppress(boxes, scores, self.grid.box_nms_thresh)
        planes = scores.new_empty(len(kept), *canvas)
        first = 0
        for geometry, masks in found:
            own = ((kept >= first) & (kept < first + len(masks.scores))).nonzero()[:, 0]
            for part in own.split(16):
                planes[part] = on_canvas(masks.logits[kept[part] - first], geometry, canvas, span)
            first += len(masks.scores)
        objectness = scores[kept].clamp(0, 1) * stability[kept]
        return Output(planes, objectness_logits(objectness), span)

    def _crop(
        self, pixels: np.ndarray, frame: Size, window: Window, points: np.ndarray
    ) -> tuple[CropGeometry, CropMasks]:
        """Ask for masks at the points of a crop, in batches, and keep some; all of a batch without finite scores."""
        side = self._side
        size = size_of(pixels)
        resized = _longest_edge(size, side) if self._pads else (side, side)
        geometry = CropGeometry(frame, window, resized, (side, side), not self._pads)
        embeddings = self._embed(self._padded(resize_bilinear(pixels, resized)))
        factors = [np.float32(to / length) for to, length in zip(resized, size, strict=True)]
        places = torch.from_numpy(points * np.array(size[::-1], np.float32) * np.array(factors[::-1])).to(self.device)
        kept: list[CropMasks] = []
        for batch in places.split(self.grid.points_per_batch):
            found = self._model(
                **embeddings,
                input_points=batch[None, :, None],
                input_labels=torch.ones(1, len(batch), 1, dtype=torch.int64, device=self.device),
                multimask_output=True,
            )
            logits, scores = found.pred_masks[0].flatten(0, 1).float(), found.iou_scores[0].flatten().float()
            if not bool(torch.isfinite(scores).all()):
                return geometry, CropMasks(logits[:1], scores[:1] * torch.nan, scores[:1], scores.new_zeros(1, 4))
            kept.append(select(logits, scores, geometry, self.grid))
        names = ("logits", "scores", "stability", "boxes")
        return geometry, CropMasks(*(torch.cat([getattr(masks, name) for masks in kept]) for name in names))

    def _embed(self, pixels: Tensor) -> dict[str, Any]:
        """Encode (3, side, side): the arguments that stand for the image."""
        embeddings = self._model.get_image_embeddings(pixels[None])
        if isinstance(embeddings, tuple):  # SAM-HQ's
            return {"image_embeddings": embeddings[0], "intermediate_embeddings": embeddings[1]}
        return {"image_embeddings": embeddings}

    def _padded(self, pixels: np.ndarray) -> Tensor:
        """Normalize, and pad with zeros: uint8 (h, w, 3) → float32 (3, side, side)."""
        tensor = torch.from_numpy(np.array(pixels)).to(self.device).permute(2, 0, 1).float()
        height, width = tensor.shape[1:]
        return F.pad((tensor - self._mean) / self._std, (0, self._side - width, 0, self._side - height))

    def _not_finite(self, masks: CropMasks, span: Size) -> Output:
        """Hand on what is not finite: whoever runs the generator refuses it."""
        return Output(masks.logits * torch.nan, masks.scores[:, None].expand(-1, 2).clone(), span)


def _longest_edge(size: Size, longest: float) -> Size:
    """Apply SAM's rule: the longer side becomes `longest`, sides rounded half up, at least 1."""
    factor = longest / max(size)
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))
