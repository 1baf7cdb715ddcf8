"""[evaluate]: fusion of both scores, assembly of the maps, and what is measured."""

from typing import Annotated, Literal

from vitp_pipeline.config.choices import FormulaName, MeasureName, Overlap, PanopticRule, Protocol, Task
from vitp_pipeline.validation.constraints import DISTINCT, SOME, Device, Fraction, within
from vitp_pipeline.validation.keys import Key
from vitp_pipeline.validation.tables import table


@table
class EvaluateSettings:
    """[evaluate]: how the scores are fused and what is measured."""

    alpha: Annotated[Fraction, Key("Weight of the classifier in the fused score; 0 = generator alone.", "fraction")] = (
        0.4
    )
    formula: Annotated[
        FormulaName,
        Key("Fusion formula: renormalized as in OneFormer's code, raw as in InternImage's."),
    ] = "renormalized"
    panoptic_rule: Annotated[PanopticRule, Key("Order of steps in panoptic assembly: of detectron2 or of mmdet.")] = (
        "d2"
    )
    object_threshold: Annotated[Fraction, Key("Lowest score of a panoptic segment.", "probability")] = 0.8
    overlap_threshold: Annotated[Fraction, Key("Lowest visible fraction of a panoptic segment.", "fraction")] = 0.8
    device: Annotated[Device, Key("Device: auto, cpu, cuda, cuda:1.", enters="not")] = "auto"
    mask_quality: Annotated[bool, Key("Rank panoptic masks by class score × mean probability inside the mask.")] = False
    # what is measured
    tasks: Annotated[
        tuple[Task, ...], SOME, DISTINCT, Key("Maps to measure; panoptic only if the labels have segments.")
    ] = ("semantic", "panoptic")
    detections: Annotated[
        int,
        within(0, 10**6),
        Key("Best (mask, class) pairs of an image that become instances; 0 = as many as queries.", "pairs"),
    ] = 100
    instance_ap: Annotated[tuple[MeasureName, ...], SOME, DISTINCT, Key("Definitions of instance AP.")] = ("coco",)
    boundary_iou: Annotated[bool, Key("Report the mean boundary IoU of the semantic maps, too.")] = False
    boundary_ratio: Annotated[
        float, within(0, 1, "()"), Key("Width of a boundary as a fraction of the image's diagonal.", "fraction")
    ] = 0.02
    components: Annotated[
        bool, Key("Take connected components of thing classes as instances where labels have no segments.")
    ] = False
    certain: Annotated[
        bool,
        Key("Report the fraction of pixels whose label provably does not depend on mask compression."),
    ] = False
    protocol: Annotated[
        Literal["", Protocol],
        Key("Order of upsampling, sigmoid, crop and resize of masks; empty = the generator's own."),
    ] = ""
    overlap: Annotated[
        Overlap,
        Key("Where masks overlap: sum of class probability × mask probability, or the mask on top has the pixel."),
    ] = "sum"
