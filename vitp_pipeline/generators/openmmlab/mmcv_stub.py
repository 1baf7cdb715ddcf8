"""Let mmseg and mmdet run with an mmcv that has no compiled operators.

`mmcv-lite` ships the Python of `mmcv.ops` but not the extension module `mmcv._ext` that it looks for while
being imported. `prepare_mmcv()` puts a stand-in there whose operators fail only when called, and gives
deformable attention, the one operator that mask transformers need, its plain-torch form on every device. An
mmcv with working operators is left as it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch

from vitp_pipeline.errors import UserError
from vitp_pipeline.generators.openmmlab.install import install_line
from vitp_pipeline.generators.openmmlab.package_paths import use_import_paths
from vitp_pipeline.generators.openmmlab.yapf_cache import import_yapf
from vitp_pipeline.generators.ops.deformable_attention import multi_scale_deformable_attn

EXTENSION = "mmcv._ext"


class MissingOperators(ModuleType):
    """Stand-in for mmcv's compiled extension: it has every operator, and each refuses to run."""

    def __init__(self, why: str) -> None:
        super().__init__(EXTENSION, "A stand-in for the compiled operators of mmcv.")
        self.__spec__ = ModuleSpec(EXTENSION, loader=None, origin="stand-in")
        self.why = why

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):  # what Python itself asks of modules must stay absent
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            raise UserError(
                f"this model needs mmcv's compiled operator '{name}', which is not here ({self.why})",
                hint="Install the full mmcv built for this torch, or choose a model without it",
            )

        return refuse


class PlainDeformableAttention:
    """Deformable attention in plain torch, with the one method that mmcv calls on CUDA."""

    @staticmethod
    def apply(
        value: torch.Tensor,
        spatial_shapes: torch.Tensor,
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        return multi_scale_deformable_attn(value, spatial_shapes, sampling_locations, attention_weights)


def prepare_mmcv() -> bool:
    """Make `mmcv.ops`, and so mmseg and mmdet, importable. Call before importing them; repeated calls are harmless.

    Returns:
        True when mmcv's own compiled operators are in use, False when the stand-in is.
    Raises:
        UserError: mmcv itself is not installed.
    """
    import_yapf()
    try:
        package = importlib.import_module("mmcv")
    except ModuleNotFoundError as error:
        raise UserError(f"the OpenMMLab adapter cannot import {error.name}", install_line([error.name])) from error
    use_import_paths()
    try:
        extension = importlib.import_module(EXTENSION)
    except ImportError as error:  # absent, or built for another torch
        extension = MissingOperators(str(error).splitlines()[0])
        sys.modules[EXTENSION] = extension
        package._ext = extension  # type: ignore[attr-defined]
    if not isinstance(extension, MissingOperators):
        return True
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    # Its forward looks both names up in its own module: the first for CUDA, the second for the rest.
    attention.MultiScaleDeformableAttnFunction = PlainDeformableAttention  # type: ignore[attr-defined]
    attention.multi_scale_deformable_attn_pytorch = multi_scale_deformable_attn  # type: ignore[attr-defined]
    return False
