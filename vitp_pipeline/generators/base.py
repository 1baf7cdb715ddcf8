"""What stage one asks of a mask generator, whatever library stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from vitp_pipeline.geometry import View

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Proposals:
    """The queries of one image: what each covers and what it is called.

    Attributes:
        mask_logits: (Q, h, w) float32 on any device, before the sigmoid, at the generator's own mask
            resolution; they span the padded frame of `view`.
        class_logits: (Q, K + 1) float32 on the same device, before the softmax, "no object" last.
        view: how the image became the tensor that the network saw; `view.mask` is (h, w).
    """

    mask_logits: torch.Tensor
    class_logits: torch.Tensor
    view: View


@runtime_checkable
class Generator(Protocol):
    """A frozen network that proposes masks.

    Attributes:
        classes: the K class names in the order of the class logits, or None when nothing names them.
        protocol: the order of upsampling, sigmoid, crop and resize for its masks: "mmseg1" or "mmdet".
    """

    classes: tuple[str, ...] | None
    protocol: str

    def propose(self, images: Sequence[np.ndarray]) -> list[Proposals]:
        """Proposals of every image, in order.

        Args:
            images: RGB uint8 (H, W, 3), each of any size.
        """
        ...
