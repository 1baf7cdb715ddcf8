"""Mask proposals from RF-DETR-Seg of transformers 5, whose classes are scored one by one, without "no object".

The network is the library's. It sees an image resized to one size, whatever its shape, as its authors' code does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.generators.base import Output
from vitp_pipeline.generators.frame_size import resize_bilinear
from vitp_pipeline.generators.huggingface.adapter import class_names, load_model
from vitp_pipeline.generators.huggingface.folder import NETWORKS, Pretrained, normalization
from vitp_pipeline.geometry import Size

NO_CLASS = "N/A"
"""Name in `id2label` of a number that COCO gives to no class; its scores are left out."""


class RfDetrGenerator:
    """A frozen RF-DETR-Seg, in float32.

    Attributes:
        name: of the model's folder.
        classes: the names in config.json; None where they are transformers' placeholders.
        protocol: "d2".
        num_classes: K. num_queries: Q.
        crop_size: (height, width) of the resized image.
        describe: one line for people: which network, which weights, which device.
    """

    def __init__(self, model: Pretrained, device: str | torch.device = "cpu", seed: int = 0) -> None:
        """Build the network and load its weights.

        Args:
            model: a folder, or a config.json for random weights drawn from `seed`.
        Raises:
            InputError: the model is missing or unreadable.
            IncompatibleError: weights and configuration do not match, or its image size is unknown.
            UserError: transformers is not installed.
        """
        self.device = torch.device(device)
        self.name = model.folder.name
        self._model = load_model(model, seed).to(self.device)
        config = self._model.config
        names = class_names(config) or tuple(f"{k}" for k in range(config.num_labels))
        self._columns = [k for k, name in enumerate(names) if name != NO_CLASS]
        self.classes = tuple(names[k] for k in self._columns) if class_names(config) else None
        self.num_classes, self.num_queries = len(self._columns), config.num_queries
        self._mean, self._std = (
            255 * torch.tensor(values, device=self.device)[:, None, None] for values in normalization(model)
        )
        self.protocol = "d2"
        self.crop_size = _size(model, config.backbone_config.image_size)
        self._multiple = config.backbone_config.patch_size * config.backbone_config.num_windows
        origin = f"weights of {model.folder.name}" if model.weights else f"random weights (seed {seed})"
        self.describe = (
            f"{NETWORKS[model.model_type]} of transformers, {self.num_queries} queries, {self.num_classes} classes, "
            f"{origin}, on {self.device}"
        )

    @property
    def parameters(self) -> int:
        """Count the network's parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Resize an image to the network's size times `scale`; see `Generator.resize`."""
        if image.ndim != 3:
            raise InputError(f"an image must be RGB uint8 (H, W, 3), not {image.dtype} {image.shape}")
        height, width = (max(1, int(length * scale + 0.5)) for length in self.crop_size)
        return resize_bilinear(image, (height, width))

    @torch.inference_mode()
    def forward(self, frames: Sequence[np.ndarray]) -> list[Output]:
        """Run the network on frames; those of one size share a forward pass. See `Generator.forward`."""
        groups: dict[Size, list[int]] = {}
        for index, frame in enumerate(frames):
            groups.setdefault((frame.shape[0], frame.shape[1]), []).append(index)
        results: dict[int, Output] = {}
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for (height, width), members in groups.items():
                pixels = torch.stack([self._padded(frames[index]) for index in members])
                seen = torch.zeros(len(members), *pixels.shape[2:], dtype=torch.int64, device=self.device)
                seen[:, :height, :width] = 1
                found = self._model(pixel_values=pixels, pixel_mask=seen)
                logits = class_logits_of_sigmoids(found.logits[:, :, self._columns].float())
                padded = (pixels.shape[2], pixels.shape[3])
                for index, masks, classes in zip(members, found.pred_masks, logits, strict=True):
                    results[index] = Output(masks.float(), classes, padded)
        return [results[index] for index in range(len(frames))]

    def _padded(self, frame: np.ndarray) -> Tensor:
        """Normalize, and pad with zeros to what the windows need: uint8 (H, W, 3) → float32 (3, Hp, Wp)."""
        pixels = torch.from_numpy(np.array(frame)).to(self.device).permute(2, 0, 1).float()
        height, width = pixels.shape[1:]
        return F.pad((pixels - self._mean) / self._std, (0, -width % self._multiple, 0, -height % self._multiple))


def class_logits_of_sigmoids(logits: Tensor) -> Tensor:
    """Make logits for a softmax, "no object" last, from logits of independent sigmoids.

    The mask's objectness p is its largest class probability; class k has the probability p · pₖ / Σp, no object 1 − p.

    Args:
        logits: (..., K) before the sigmoid.
    Returns:
        (..., K + 1) float32: logarithms of those probabilities.
    """
    log_probs = F.logsigmoid(logits.double())
    largest = logits.double().amax(-1, keepdim=True)
    shares = log_probs - log_probs.logsumexp(-1, keepdim=True)
    return torch.cat([F.logsigmoid(largest) + shares, F.logsigmoid(-largest)], -1).float()


def _size(model: Pretrained, own: object) -> Size:
    """Return the size of the resized image: of the preprocessor, else of the backbone."""
    said = model.preprocessor.get("size")
    if isinstance(said, dict) and said.get("height") and said.get("width"):
        return said["height"], said["width"]
    if isinstance(own, int) and (said is None or not isinstance(said, dict) or "shortest_edge" not in said):
        return own, own
    raise IncompatibleError(
        f"{model.folder}: does not say at what height and width its RF-DETR sees images",
        'Write "size": {"height": …, "width": …} in its preprocessor_config.json',
    )
