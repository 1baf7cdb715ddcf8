"""Mask proposals from transformers 5: OneFormer with its task token, Mask2Former, MaskFormer and EoMT.

The network is the library's. Inputs are made as in the authors' `oneformer/oneformer_model.py`, not by the library's
image processors, whose sizes and padding differ. Outputs are the raw logits of the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitp_pipeline.errors import IncompatibleError, InputError, UsageError, UserError
from vitp_pipeline.generators.base import Output
from vitp_pipeline.generators.frame_size import resize_bilinear, shortest_edge_size, size_around, size_inside
from vitp_pipeline.generators.huggingface.folder import (
    INSTALL,
    NETWORKS,
    Pretrained,
    frame_edges,
    normalization,
    open_pretrained,
    sees_windows,
)
from vitp_pipeline.geometry import Size, size_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

STRIDE = 32
"""Frames are padded right and bottom to multiples of it, for every backbone."""
TASK_IDS = {
    "panoptic": (49406, 518, 10549, 533, 1072, 24755, 49407),
    "instance": (49406, 518, 10549, 533, 34572, 49407),
    "semantic": (49406, 518, 10549, 533, 29119, 1550, 49407),
}
"""CLIP's token ids of "the task is …"; OneFormer reads them as numbers, padded with zeros."""


class TransformersGenerator:
    """A frozen mask transformer of transformers, in float32.

    Attributes:
        name: of the model's folder.
        classes: the names in config.json; None where they are transformers' placeholders.
        protocol: "d2"; "mmseg1" for EoMT's semantic models, which average the probabilities of windows.
        num_classes: K. num_queries: Q.
        crop_size: (height, width) of what enters the network where only one size can; None elsewhere.
        slide: (window, stride), each (height, width), of EoMT's semantic models; None elsewhere.
        describe: one line for people: which network, which weights, which device.
    """

    def __init__(
        self,
        model: Pretrained | Path,
        device: str | torch.device = "cpu",
        seed: int = 0,
        task: str = "panoptic",
        test_size: tuple[int, ...] = (),
    ) -> None:
        """Build the network and load its weights.

        Args:
            model: a folder, or a config.json for random weights drawn from `seed`.
            device: torch device.
            task: OneFormer's task: semantic, instance or panoptic; other networks have none.
            test_size: shortest and longest edge of the resized image; empty: what the folder says. EoMT has one size.
        Raises:
            InputError: the model is missing or unreadable.
            IncompatibleError: weights and configuration do not match, or the network draws random numbers.
            UsageError: a task or a size for a network that takes none.
            UserError: transformers is not installed, or the network is no mask generator known here.
        """
        found = open_pretrained(model) if isinstance(model, Path) else model
        self.device = torch.device(device)
        self.name = found.folder.name
        self._model = load_model(found, seed).to(self.device)
        config = self._model.config
        self.num_classes = config.num_labels
        self.num_queries = getattr(config, "decoder_config", config).num_queries  # MaskFormer's is DETR's
        self.classes = class_names(config)
        self._mean, self._std = (
            255 * torch.tensor(values, device=self.device)[:, None, None] for values in normalization(found)
        )
        self._task = _task_ids(found, config, task)
        self._side = _side(found, self._model, test_size)
        self._windows = self._side is not None and sees_windows(found)
        self._edges = frame_edges(found, test_size) if self._side is None else ()
        self.crop_size = None if self._side is None else (self._side, self._side)
        self.slide = (self.crop_size, self.crop_size) if self._windows else None
        self.protocol = "mmseg1" if self._windows else "d2"
        origin = f"weights of {found.folder.name}" if found.weights else f"random weights (seed {seed})"
        self.describe = (
            f"{NETWORKS[found.model_type]}{'' if self._task is None else f', task {task},'} of transformers, "
            f"{self.num_queries} queries, {self.num_classes} classes, {origin}, on {self.device}"
        )

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Resize an image to test size times `scale`; see `Generator.resize`. Channels stay RGB, values uint8."""
        if image.ndim != 3:
            raise InputError(f"an image must be RGB uint8 (H, W, 3), not {image.dtype} {image.shape}")
        size = size_of(image)
        if self._side is not None:
            fit = size_around if self._windows else size_inside
            return resize_bilinear(image, fit(size, int(self._side * scale + 0.5)))
        shortest, longest = (int(edge * scale + 0.5) for edge in self._edges)
        return resize_bilinear(image, shortest_edge_size(size, shortest, longest))

    resize_again = resize  # a frame is an image

    @torch.inference_mode()
    def forward(self, frames: Sequence[np.ndarray]) -> list[Output]:
        """Run the network on frames; those of one padded size share a forward pass. See `Generator.forward`."""
        padded = [self._padded(torch.from_numpy(np.array(frame)).to(self.device)) for frame in frames]
        groups: dict[Size, list[int]] = {}
        for index, tensor in enumerate(padded):
            _, height, width = tensor.shape
            groups.setdefault((height, width), []).append(index)
        results: dict[int, Output] = {}
        # No TF32: logits must agree between batch sizes and with the CPU.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for size, members in groups.items():
                masks, classes = self._logits(torch.stack([padded[index] for index in members]))
                for index, mask, label in zip(members, masks, classes, strict=True):
                    results[index] = Output(mask.float(), label.float(), size)
        return [results[index] for index in range(len(frames))]

    @property
    def parameters(self) -> int:
        """Count the network's parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def _padded(self, frame: Tensor) -> Tensor:
        """Normalize and pad: uint8 (H, W, 3) → float32 (3, Hp, Wp).

        EoMT pads with black to its square; the others with zeros after the normalization, so with the mean color.
        """
        pixels = frame.permute(2, 0, 1).float()
        height, width = pixels.shape[1:]
        if self._side is None:
            return F.pad((pixels - self._mean) / self._std, (0, -width % STRIDE, 0, -height % STRIDE))
        if max(height, width) > self._side:
            raise UserError(
                f"{self.name}: this EoMT sees squares of {self._side} pixels, a frame has {height} × {width}",
                f"Set window = [{self._side}, {self._side}]" if self._windows else "Use scales of at most 1",
            )
        pixels = F.pad(pixels, (0, self._side - width, 0, self._side - height))
        return (pixels - self._mean) / self._std

    def _logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network: (B, 3, Hp, Wp) → mask logits (B, Q, h, w) and class logits (B, Q, K + 1)."""
        arguments: dict[str, Any] = {"pixel_values": pixels}
        if self._task is not None:
            arguments["task_inputs"] = self._task.to(self.device).expand(len(pixels), -1)
        if self._model.config.model_type == "mask2former":
            arguments["output_hidden_states"] = True  # that of transformers 5.23 raises without
        found = self._model(**arguments)
        return found.masks_queries_logits, found.class_queries_logits


def load_model(found: Pretrained, seed: int) -> PreTrainedModel:
    """Build a network with its weights, or with random ones from `seed`; raises as `TransformersGenerator` does."""
    try:
        from vitp_pipeline.generators.huggingface.models import build_model, build_random_model
    except ModuleNotFoundError as error:
        raise UserError(f"{found.config}: needs {error.name}, which is not installed", INSTALL) from error
    if found.weights:
        model = build_model(found.folder)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_random_model(found.config)
    if found.model_type == "maskformer":
        model.config.use_auxiliary_loss = False  # that of transformers 5.23 raises with it
    return model


def class_names(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """Return the names in `id2label`; None where they are transformers' placeholders."""
    names = tuple(config.id2label[k] for k in range(config.num_labels))
    return None if names == tuple(f"LABEL_{k}" for k in range(len(names))) else names


def _task_ids(found: Pretrained, config: PreTrainedConfig, task: str) -> Tensor | None:
    """Encode the task for OneFormer's task layer, (1, 77) float32; None for networks without one."""
    if found.model_type != "oneformer":
        if task != "panoptic":
            raise UsageError(
                f"{found.config}: {NETWORKS[found.model_type]} has no task to choose", "Leave `task` out of the recipe"
            )
        return None
    ids = torch.zeros(1, config.task_seq_len)
    ids[0, : len(TASK_IDS[task])] = torch.tensor(TASK_IDS[task]).float()
    return ids


def _side(found: Pretrained, model: PreTrainedModel, test_size: tuple[int, ...]) -> int | None:
    """Return the side of the square input of an EoMT; None for networks that take images of any size."""
    if not found.model_type.startswith("eomt"):
        return None
    side: int = model.config.image_size
    if test_size and set(test_size) != {side}:
        raise UsageError(f"{found.config}: this EoMT sees squares of {side} pixels", "Leave `test_size` out")
    chances = model.attn_mask_probs
    if bool(((chances > 0) & (chances < 1)).any()):
        raise IncompatibleError(
            f"{found.config}: its attn_mask_probs {chances.tolist()} are of a training that was not over; "
            "such an EoMT draws random numbers",
            "Use the weights of the end of the training",
        )
    return side
