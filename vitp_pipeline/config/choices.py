"""Choices of keys that other code also uses; for extensible families, their registries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from vitp_pipeline.validation.constraints import OneOf
from vitp_pipeline.validation.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Task = Literal["semantic", "panoptic", "instance"]
PanopticRule = Literal["d2", "mmdet"]
Overlap = Literal["sum", "smallest-on-top", "highest-score"]
Protocol = Literal["mmseg0", "mmseg1", "mmdet", "d2"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Average = Literal["auto", "probabilities", "log-probabilities"]
Annotation = Literal["fine", "coarse", "boxes"]

TASKS: tuple[Task, ...] = get_args(Task)
PANOPTIC_RULES: tuple[PanopticRule, ...] = get_args(PanopticRule)
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
ANNOTATIONS: tuple[Annotation, ...] = get_args(Annotation)

Formula = Callable[["Tensor", "Tensor", float], tuple["Tensor", "Tensor"]]
"""From the generator's logits (Q, K+1), no object last, the classifier's (Q, K) and α in (0, 1] to probabilities of the
classes (Q, K) and of no object (Q,), which together are 1 for each mask; float32, any device, −inf logits allowed.
"""
FORMULAS: Registry[Formula] = Registry("fusion formula", "vitp_pipeline.postprocess.fusion")

INSTANCE_MEASURES: Registry[Any] = Registry("definition of instance AP", "vitp_pipeline.evaluation.instance_measures")
"""Of `evaluation.instance_measures.InstanceMeasure`, whose types are of higher rooms."""

FormulaName = Annotated[str, OneOf(FORMULAS)]
MeasureName = Annotated[str, OneOf(INSTANCE_MEASURES)]
