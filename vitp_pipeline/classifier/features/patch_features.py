"""Features of a frozen backbone: all that the head of a classifier with `point_token = "sampled"` reads of an image.

They depend on the image alone, not on the points, the head, or how either is trained. So they can be stored
(`artifacts.features`) and shared by trainings, validation and `classify`. Wherever they are used, stored or not, they
are computed one image a forward and rounded to float16: results do not depend on what is stored, to the last byte.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp_pipeline.classifier.inference import flipped_points
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.runtime.devices import mixed_precision, precision_of

LARGEST = float(np.finfo(np.float16).max)
BYTES = np.dtype(np.float16).itemsize


def reads_patches(model: PointViT) -> bool:
    """Tell if points read the patches and have no token, so that an image's features do not depend on them."""
    return model.config.point_token == "sampled" and model.config.prompt == "point"


def features_shape(model: PointViT) -> tuple[int, int, int]:
    """Return the shape (F, P, D) of an image's features: feature layers, patches, channels."""
    return len(model.feature_layers), math.prod(model.grid), model.backbone.embed_dim


def features_identity(model: PointViT, precision: str) -> dict[str, Any]:
    """Collect what decides the features of an image, as JSON types: the backbone without its last norm, and how it is
    run on the model's device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.backbone.state_dict().items()):
        if not name.startswith("norm."):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.view(torch.uint8).numpy() if values.ndim else bytes(values.numpy()))
    config = model.config
    return {
        "backbone": config.backbone,
        "backbone_args": config.backbone_args,
        "weights": digest.hexdigest(),
        "image_size": list(config.image_size),
        "feature_layers": list(model.feature_layers),
        "pos_embed": config.pos_embed,
        "precision": precision_of(precision, model.mean.device),
    }


class PatchEncoder:
    """Compute the features of single images. The model is frozen by it.

    Args:
        model: `reads_patches` is true of it.
        precision: "auto", "float32", "bfloat16" or "float16".
    """

    def __init__(self, model: PointViT, precision: str) -> None:
        model.freeze()
        self.model, self.precision = model, precision

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Run the backbone once.

        Args:
            pixels: (3, H, W) uint8 RGB at the model's size.
        Returns:
            (F, P, D) float16, P row by row; larger values become ±65504, and NaN remains.
        """
        model = self.model
        model.backbone.eval()
        images = torch.from_numpy(np.ascontiguousarray(pixels))[None].to(model.mean.device)
        with torch.inference_mode(), mixed_precision(self.precision, images.device):
            layers = model.patch_features(model.normalize(images))
        found: np.ndarray = torch.cat(layers).float().clamp(-LARGEST, LARGEST).half().cpu().numpy()
        return found

    def features(self, seen: np.ndarray) -> np.ndarray:
        """Return features as they are, (F, P, D) float16, and compute those of pixels, (3, H, W) uint8."""
        return self(seen) if seen.dtype == np.uint8 else seen


def head_inputs(model: PointViT, features: Tensor, points: Tensor) -> Tensor:
    """Read points from features.

    Args:
        features: (B, F, P, D) float16. points: (B, N, 2) float in [−1, 1], (row, col); both on the model's device.
    Returns:
        (B, N, F·D).
    """
    return model.read_patches(features.float().unbind(1), points)


@torch.inference_mode()
def feature_logits(
    model: PointViT, features: Tensor, points: Tensor, mirrored: Tensor | None = None, precision: str = "auto"
) -> Tensor:
    """Compute logits of the points of an image from its features; the counterpart of `inference.point_logits`.

    Args:
        features: (F, P, D) float16. points: (N, 2) float in [−1, 1], (row, col); both on the model's device.
        mirrored: features of the mirror image, whose log-probabilities are averaged with the image's.
    Returns:
        (N, K) float32.
    """
    with mixed_precision(precision, features.device):
        logits = model.logits(head_inputs(model, features[None], points[None])).float()
        if mirrored is not None:
            there = flipped_points(points[None], model.image_size[1])
            other = model.logits(head_inputs(model, mirrored[None], there)).float()
            logits = (logits.log_softmax(-1) + other.log_softmax(-1)) / 2
    return logits[0]
