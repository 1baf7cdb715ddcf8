"""[generate-proposals]: the generator, the views of an image, the points of a mask, and how masks are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Len

from vitp_pipeline.artifacts.mask_codec import PRESETS, MaskCodec
from vitp_pipeline.errors import UsageError
from vitp_pipeline.validation.constraints import (
    ASCENDING,
    DISTINCT,
    PAIR_OR_NONE,
    Check,
    Count,
    Device,
    Fraction,
    OneOf,
    Pixels,
    Seed,
    within,
)
from vitp_pipeline.validation.keys import Key
from vitp_pipeline.validation.registry import Registry
from vitp_pipeline.validation.tables import table

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vitp_pipeline.geometry import View


@dataclass(frozen=True)
class MasksOfView:
    """Masks of a view of an image, whose points are chosen.

    Attributes:
        logits: (Q, h, w) float32 in the padded frame, of full precision, any device.
        view: how the generator saw the image.
        protocol: order of upsampling, sigmoid, crop and resize.
        name: of the view, seeds random draws.
        first: index of the first of these queries, for the same purpose.
        binary: whether all pixels inside a mask have the same logit, so that there is no maximum.
    """

    logits: Tensor
    view: View
    protocol: str
    name: str
    first: int = 0
    binary: bool = False


@dataclass(frozen=True)
class PointPolicy:
    """A policy that chooses the points of a mask.

    Attributes:
        choose: masks and settings → (Q, n, 2) int32, (row, col) pixels of the original image inside the view; the
            masks do not decide n. Raises InputError where these masks have no such points.
        per_mask: settings → n, the number of points per mask that the classifier scores.
        average: of the scores of n points, where [classify] average is "auto".
        local: whether the points of a binary mask depend only on a part of the image that holds it, and lie in it.
    """

    choose: Callable[[MasksOfView, ProposalSettings], np.ndarray]
    per_mask: Callable[[ProposalSettings], int] = lambda settings: 1
    average: Literal["probabilities", "log-probabilities"] = "probabilities"
    local: bool = False


POINT_POLICIES: Registry[PointPolicy] = Registry("point policy", "vitp_pipeline.postprocess.point_policies")

PolicyName = Annotated[str, OneOf(POINT_POLICIES)]
Scale = Annotated[float, within(0, 100, "()")]
STEP = Check(
    lambda step: step == 0 or (step >= 2**-14 and math.frexp(step)[0] == 0.5), "is neither 0 nor 1, 1/2, 1/4 … 1/16384"
)


@table
class ProposalSettings:
    """[generate-proposals]: the generator, its views, and the points and masks to store."""

    config: Annotated[
        str,
        Key(
            "Generator: an OpenMMLab config, a folder of transformers, hf:OWNER/NAME, a .pth, python:FILE.py:CLASS.",
            enters="content",
        ),
    ]
    checkpoint: Annotated[
        str,
        Key(
            "Weights of the generator: a file, by path or name; empty = those of the folder or class, random = none.",
            enters="content",
        ),
    ] = ""
    split: Annotated[str, Len(1), Key("Split of the manifest.")] = "val"
    limit: Annotated[Count, Key("Process only the first images of the split; 0 = all.", "images")] = 0
    points: Annotated[
        tuple[PolicyName, ...],
        DISTINCT,
        Check(lambda names: "max" in names, 'lacks "max", which the upper bound by point needs'),
        Key("Point policies to store: which pixels stand for a mask."),
    ] = ("max",)
    multi: Annotated[
        int, within(1, 4096), Key("Random pixels drawn inside a mask under the policy multi.", "points")
    ] = 16
    max_at: Annotated[
        Literal["image", "view", "mask"],
        Key("Search the highest logit at the image's resolution, first in the image or in the view, or in mask cells."),
    ] = "image"
    drop_below: Annotated[
        float,
        within(0, 1000),
        Key("Largest summed objectness of the masks of an image that are not stored; 0 = store all.", "probability"),
    ] = 0.001
    mask_dtype: Annotated[Literal["float16", "float32"], Key("Data type of stored mask logits.")] = "float32"
    part_size: Annotated[
        int,
        within(1, 10**6),
        Key("Images in a part, the unit that is committed as a whole.", "images"),
    ] = 1000
    seed: Annotated[Seed, Key("Seed of random weights and random points.", "integer")] = 0
    batch_size: Annotated[int, within(1, 4096), Key("Images per forward pass.", "images", "not")] = 1
    device: Annotated[Device, Key("Device: auto, cpu, cuda, cuda:1.", enters="not")] = "auto"
    local_maxima: Annotated[
        int,
        within(1, 4096),
        Key("Points of a mask under the policy local_maxima: max, then local maxima.", "points"),
    ] = 4
    task: Annotated[Literal["semantic", "instance", "panoptic"], Key("Task token of OneFormer.")] = "panoptic"
    test_size: Annotated[
        tuple[Pixels, ...],
        PAIR_OR_NONE,
        ASCENDING,
        Key("Shortest and longest edge of the resized image in transformers' models; empty = the folder's own.", "px"),
    ] = ()
    # the grid of points of Segment Anything's models (docs/generators/segment-anything.md), names and defaults as there
    points_per_side: Annotated[
        int, within(1, 256), Key("SAM: points along a side of the image and of every crop.", "points")
    ] = 32
    points_per_batch: Annotated[int, within(1, 65536), Key("SAM: points per pass of the decoder.", "points", "not")] = (
        64
    )
    pred_iou_thresh: Annotated[
        Fraction, Key("SAM: keep masks whose predicted IoU is above it; 0 = keep all.", "fraction")
    ] = 0.88
    stability_score_thresh: Annotated[
        Fraction, Key("SAM: keep masks whose stability is above it; 0 = keep all.", "fraction")
    ] = 0.95
    stability_score_offset: Annotated[
        float, within(0, 100), Key("SAM: stability is the IoU of a mask at this logit and at its negative.", "logit")
    ] = 1.0
    box_nms_thresh: Annotated[
        Fraction, Key("SAM: of two masks whose boxes overlap more, keep the one of higher predicted IoU.", "fraction")
    ] = 0.7
    crop_n_layers: Annotated[
        int, within(0, 2), Key("SAM: see crops of the image, too: 4 in the first layer, 16 in the second.", "layers")
    ] = 0
    crop_n_points_downscale_factor: Annotated[
        int, within(1, 16), Key("SAM: divide points_per_side by it from layer to layer of crops.", "factor")
    ] = 1
    # the views of every image (docs/views.md)
    preset: Annotated[str, Key("Table of stages/presets/ that gives the keys not set here.", enters="keys")] = ""
    scales: Annotated[
        tuple[Scale, ...], Len(1, 64), Key("Factors on the generator's own test size: one frame for each.", "factor")
    ] = (1.0,)
    scaled_from: Annotated[
        Literal["image", "frame"],
        Key("Frames are resized from the image, or from the frame of the generator's own test size."),
    ] = "image"
    flip: Annotated[bool, Key("Add a horizontally flipped copy of every frame.")] = False
    window: Annotated[
        tuple[Annotated[int, within(0, 2**16)], ...],
        PAIR_OR_NONE,
        Key("Height, width of sliding windows in the frame; empty = the generator's own, [0, 0] = none.", "px"),
    ] = ()
    stride: Annotated[
        tuple[Pixels, ...],
        PAIR_OR_NONE,
        Key("Step from one window to the next, rows and columns; empty = the generator's own, or half a window.", "px"),
    ] = ()
    # how much of the masks is stored (docs/storage.md)
    masks: Annotated[
        Literal["lossless", "panoptic-exact", "bounded", "compact"],
        Key("Mask storage preset: gives the keys below that are not set here.", enters="keys"),
    ] = "bounded"
    drop_threshold: Annotated[
        Fraction,
        Key("Drop masks that no panoptic map with at least this object_threshold shows; 0 = off.", "probability"),
    ] = 0.0
    floor: Annotated[
        float,
        within(-1000, 0),
        Check(float.is_integer, "is not a whole number", {"multipleOf": 1}),
        Key("Raise far background to this logit, such as -8; 0 = off.", "logit"),
    ] = -8.0
    step: Annotated[
        float,
        within(0, 1),
        STEP,
        Key("Quantize mask logits to multiples of this power of two, such as 0.0078125; 0 = off.", "logit"),
    ] = 1 / 128
    graded: Annotated[bool, Key("Double the step for each unit by which a logit and its neighbors differ from 0.")] = (
        True
    )

    def __post_init__(self) -> None:
        if any(self.window) and not all(self.window):
            raise UsageError(f"window = {list(self.window)}", "Give height and width; [0, 0] = no windows")
        if self.stride and self.window and not all(0 < s <= w for s, w in zip(self.stride, self.window, strict=True)):
            raise UsageError(
                f"stride = {list(self.stride)} does not fit window = {list(self.window)}",
                "Strides lie between 1 and the window's own height and width",
            )
        if self.graded and not self.step:
            raise UsageError("graded = true needs a step", "Set one, like 0.0078125 for 1/128, or graded = false")

    @property
    def codec(self) -> MaskCodec:
        """Settings of mask compression."""
        return MaskCodec(**{field.name: getattr(self, field.name) for field in fields(MaskCodec)})

    @property
    def one_view(self) -> bool:
        """True if every image is seen once, whole, unless the generator's own config asks for windows."""
        return not self.flip and len(self.scales) == 1 and not any(self.window)


def with_mask_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Add the keys of the preset `masks`; keys that are set override them."""
    return {**PRESETS.get(str(values.get("masks")), {}), **values}
