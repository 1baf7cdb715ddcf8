"""Interface of a mask generator of any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from vitp_pipeline.geometry import Size, View

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Proposals:
    """Proposals of one view of an image: masks and class logits of all queries.

    Attributes:
        mask_logits: (Q, h, w) float32 on any device, before the sigmoid, at the generator's own mask
            resolution; they span the padded frame of `view`.
        class_logits: (Q, K + 1) float32 on the same device, before the softmax, "no object" last.
        view: geometry from the original image to the network's input; `view.mask` is (h, w).
    """

    mask_logits: torch.Tensor
    class_logits: torch.Tensor
    view: View


@dataclass(frozen=True)
class Output:
    """Output of a network for one frame.

    Attributes:
        mask_logits: (Q, h, w) float32 on any device, before the sigmoid, over the padded frame.
        class_logits: (Q, K + 1) float32 on the same device, before the softmax, "no object" last.
        padded: (height, width) of the tensor that entered the network: the frame, padded right and bottom.
    """

    mask_logits: torch.Tensor
    class_logits: torch.Tensor
    padded: Size


@runtime_checkable
class Generator(Protocol):
    """A frozen network that proposes masks. `propose` (generators/views.py) runs it on the views of an image.

    Attributes:
        classes: the K class names in the order of the class logits, or None if unknown.
        protocol: the order of upsampling, sigmoid, crop and resize for its masks: one of `config.choices.PROTOCOLS`.
        describe: one line for people: which network, which weights, which device.

    An adapter may also have `slide`: (window, stride), each (height, width) in the resized image, if the model's own
    settings want sliding windows; None or no such attribute means that it sees images whole. It may have
    `resize_again(frame, scale)`, which resizes what `resize` gave once more, for `scaled_from = "frame"`; and
    `class_agnostic`: True if its masks have no class scores (`is_class_agnostic`); `classes` is None then, and class
    logits are (Q, 2), object and no object, as `objectness_logits` makes them.
    """

    classes: tuple[str, ...] | None
    protocol: str
    describe: str

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Resize an image to the network's test size times `scale`.

        Must be thread-safe: it is called from several threads while `forward` runs.

        Args:
            image: RGB uint8 (H, W, 3) of any size.
            scale: > 0, a factor on the network's test size (shorter and longer edge), not on the image size.
        Returns:
            A frame (Hr, Wr, 3), in the channel order and dtype that `forward` takes; callers may only flip or crop it.
        Raises:
            InputError: the image is of another shape or type.
        """
        ...

    def forward(self, frames: Sequence[np.ndarray]) -> list[Output]:
        """Normalize, pad and run frames of any sizes; return one output each, in order."""
        ...


def is_class_agnostic(generator: object) -> bool:
    """Tell if a generator, or the source of one, gives masks without class scores."""
    return getattr(generator, "class_agnostic", False) is True


_LEAST = 1e-9  # probability in place of 0, whose logarithm is not finite


def objectness_logits(objectness: torch.Tensor) -> torch.Tensor:
    """Make the class logits of masks without class scores: (Q, 2) float32, of object and no object.

    Args:
        objectness: (Q,) in [0, 1].
    """
    own = objectness.double()
    none = (1 - own).clamp(_LEAST).log() - own.clamp(_LEAST).log()
    return _after_zeros(none, 1)


def spread_objectness(logits: torch.Tensor, classes: int) -> torch.Tensor:
    """Divide the probability of "object" evenly among the classes.

    Args:
        logits: (Q, 2), object and no object.
    Returns:
        (Q, classes + 1) float32: 0 for every class, "no object" last.
    """
    none = logits[:, 1].double() - logits[:, 0].double() + math.log(classes)
    return _after_zeros(none, classes)


def _after_zeros(last: torch.Tensor, zeros: int) -> torch.Tensor:
    from torch.nn import functional as F

    return F.pad(last[:, None], (zeros, 0)).float()
