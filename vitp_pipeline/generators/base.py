"""Interface of a mask generator of any library."""

from __future__ import annotations

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
    settings want sliding windows; None or no such attribute means that it sees images whole.
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
