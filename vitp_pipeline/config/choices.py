"""Words that a key may be, where code elsewhere goes by them, too. Adding one = its word here, and the code."""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal["semantic", "panoptic", "instance"]
InstanceMeasure = Literal["coco", "boundary", "cityscapes"]
Formula = Literal["renormalised", "raw"]
PanopticRule = Literal["d2", "mmdet"]
Protocol = Literal["mmseg0", "mmseg1", "mmdet", "d2"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Average = Literal["auto", "probabilities", "log-probabilities"]
Annotation = Literal["fine", "coarse", "boxes"]

TASKS: tuple[Task, ...] = get_args(Task)
INSTANCE_MEASURES: tuple[InstanceMeasure, ...] = get_args(InstanceMeasure)
FORMULAS: tuple[Formula, ...] = get_args(Formula)
PANOPTIC_RULES: tuple[PanopticRule, ...] = get_args(PanopticRule)
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
ANNOTATIONS: tuple[Annotation, ...] = get_args(Annotation)
