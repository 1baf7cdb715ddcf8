"""Result formats that other tools read: which maps they hold, how an image is written, and what its ids mean.

| format | files | ids | read by |
|---|---|---|---|
| `coco-panoptic` | panoptic/NAME.png (R + 256·G + 65536·B), panoptic.json | the manifest's label values | panopticapi |
| `coco-results` | results.json (run lengths), images.json | the manifest's label values | pycocotools |
| `coco-instances` | instances.json, a data set with scores | the manifest's label values | FiftyOne, supervision |
| `cvat` | annotations/instances_default.json, alike | the manifest's label values | CVAT (COCO 1.0), Datumaro |
| `label-studio` | tasks.json with brush masks, config.xml | class names | Label Studio |
| `cityscapes` | semantic/NAME.png, instance/NAME.txt and masks/ | Cityscapes' label ids | cityscapesScripts |
| `ade20k` | NAME.png | the manifest's label values, from 1 | the ADE20K server |
| `label-png` | NAME.png, with the manifest's colors as its palette | the manifest's label values | mmsegmentation |

NAME is that of the image's file; where two images have one, with its folders (`identity.result_names`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.config.choices import Task
from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.decoding.rle import Rle
from vitp_pipeline.errors import UsageError
from vitp_pipeline.postprocess.panoptic import Segment
from vitp_pipeline.validation.registry import Registry


@dataclass
class ImageResult:
    """Predictions for one image. Maps are computed when first used: a format needs one or two of them.

    Attributes:
        json_id: as JSON files have its id (`identity.json_ids`).
        file_name: as in the proposals.
        name: of its files, a relative path without ending.
        size: (H, W).
        semantic: () → (H, W) class indices.
        panoptic: () → ids (H, W) and segments.
        instances: () → run lengths, classes and scores, the best first.
    """

    json_id: int | str
    file_name: str
    name: str
    size: tuple[int, int]
    semantic: Callable[[], np.ndarray]
    panoptic: Callable[[], tuple[np.ndarray, list[Segment]]]
    instances: Callable[[], tuple[list[Rle], np.ndarray, np.ndarray]]


Entry = dict[str, Any] | list[Any]
"""Entry of an image in the JSON files of its format; JSON types."""


@dataclass(frozen=True)
class ResultFormat:
    """Files of a format.

    Attributes:
        write: writes those of an image below a folder; returns the image's entry, and the files.
        tasks: the maps that it shows. Without things in a manifest there are no instances to write.
        file_per_image: whether it has files called by images.
        ending: the longest that such a file has behind the image's name.
        json: (manifest, all images with id, file_name, height and width, their entries) → content by file name.
        check: raises UsageError where the manifest lacks what its ids are made of.
        identity: what else of the manifest changes the files; JSON types.
    """

    write: Callable[[DatasetSpec, ImageResult, Path], tuple[Entry, list[Path]]]
    tasks: tuple[Task, ...]
    file_per_image: bool = True
    json: Callable[[DatasetSpec, Sequence[dict[str, Any]], Sequence[Any]], dict[str, Any]] = lambda *_: {}
    check: Callable[[DatasetSpec], None] = lambda _: None
    identity: Callable[[DatasetSpec], dict[str, Any]] = lambda _: {}
    ending: str = ".png"


RESULT_FORMATS: Registry[ResultFormat] = Registry(
    "result format",
    "vitp_pipeline.interop.results_coco",
    "vitp_pipeline.interop.results_cityscapes",
    "vitp_pipeline.interop.results_png",
    "vitp_pipeline.interop.labeling.results",
)


def find_format(name: str, spec: DatasetSpec) -> ResultFormat:
    """Find a format by name. Raises UsageError if it is unknown, or the manifest lacks what it needs."""
    found = RESULT_FORMATS[name]
    found.check(spec)
    if "instance" in found.tasks and not any(spec.things):
        raise UsageError(f"format {name}: manifest {spec.name!r} has no things, so there are no instances")
    return found
