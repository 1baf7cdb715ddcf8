"""Count parameters and FLOPs of generator and classifier, as in the paper's Tables 1, 2, 3 and 4a.

One multiply-add is one MAC and two FLOPs. The paper's "#FLOPs" are MACs (docs/cost.md). The count covers matrix
products, convolutions, attention (as if every token saw every other) and bilinear sampling; elementwise operations,
norms, softmax and resizing are not, nor are compiled operators that torch knows nothing of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.geometry import Size

if TYPE_CHECKING:
    from vitp_pipeline.generators.huggingface.adapter import TransformersGenerator
    from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator


@dataclass(frozen=True)
class Cost:
    """Cost of one network for one image.

    Attributes:
        part: "generator" or "classifier".
        network: its config's or its backbone's name.
        size: (height, width) of what enters it.
        n: queries of the generator, or points per forward pass of the classifier.
        classes: K.
        forwards: forward passes per image.
        parameters: all trainable numbers, used or not.
        flops: of all forward passes, two per multiply-add.
        feature_bytes: of what points read of an image, where that does not depend on them and can be stored
            (`feature_cache`), before compression; else 0.
    """

    part: str
    network: str
    size: Size
    n: int
    classes: int
    forwards: int
    parameters: int
    flops: int
    feature_bytes: int = 0

    @property
    def macs(self) -> int:
        return self.flops // 2


def classifier_cost(settings: TrainSettings, classes: int, points: int, forwards: int = 1) -> Cost:
    """Count ViT-P with N points, or with N masks for a mask-prompted one, built on the meta device.

    Args:
        settings: only architecture and `image_size` matter.
        classes: K.
        points: N of one forward.
        forwards: forwards an image, e.g. 2 with the flipped image.
    Raises:
        UsageError: as for `build_model`.
    """
    from vitp_pipeline.classifier.build import build_model
    from vitp_pipeline.classifier.features.patch_features import BYTES, features_shape, reads_patches

    with torch.device("meta"):
        model = build_model(settings, tuple(f"class {k}" for k in range(classes))).eval()
        images = torch.empty(1, 3, *model.image_size)
        # a mask is prompted by the share that it covers of each patch
        prompts = torch.empty(1, points, math.prod(model.grid) if settings.prompt == "mask" else 2)
    flops = forwards * count_flops(lambda: model(images, prompts))
    parameters = sum(p.numel() for p in model.parameters())
    stored = math.prod(features_shape(model)) * BYTES if reads_patches(model) else 0
    return Cost("classifier", settings.backbone, model.image_size, points, classes, forwards, parameters, flops, stored)


def generator_cost(generator: OpenMMLabGenerator | TransformersGenerator, size: Size) -> Cost:
    """Count a built generator on a blank frame of (height, width), which it may pad; runs a real forward pass."""
    seen: list[Size] = []
    flops = count_flops(lambda: seen.append(generator.forward([np.zeros((*size, 3), np.uint8)])[0].padded))
    n, classes = generator.num_queries, generator.num_classes
    return Cost("generator", generator.name, seen[0], n, classes, 1, generator.parameters, flops)


def count_flops(forward: Callable[[], Any]) -> int:
    """Count the FLOPs of `forward`, two per multiply-add."""
    bags = (torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only)
    sampling = {torch.ops.aten.grid_sampler_2d: _grid_sample_flops} | dict.fromkeys(bags, _embedding_bag_flops)
    counter = FlopCounterMode(display=False, custom_mapping=sampling)
    fast = torch.backends.mha.get_fastpath_enabled()
    # Fused attention hides its products from the counter where torch has no formula for the kernel, as on the CPU.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def _grid_sample_flops(*shapes: Any, out_shape: Sequence[int], **_: Any) -> int:
    """Bilinear: four neighbors times their weights for every number that comes out."""
    return 2 * 4 * math.prod(out_shape)


def _embedding_bag_flops(table: Sequence[int], indices: Sequence[int], *_: Any, **__: Any) -> int:
    """Count a weighted sum of rows of a table, with which `generators/ops/bilinear.py` samples."""
    return 2 * math.prod(indices) * table[1]
