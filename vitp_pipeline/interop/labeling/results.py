"""Results as tools for labeling take them: masks that people correct in place of drawing them.

`cvat`: the layout of CVAT's COCO 1.0, annotations/instances_default.json; images belong to the task already.
`label-studio`: tasks.json, a task an image with one prediction; its masks are brush masks.

What people have corrected comes back as a split: label kind coco-instances of CVAT's export "COCO 1.0" and of
FiftyOne's COCODetectionDataset, label kind label-studio of Label Studio's JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.decoding.brush_rle import encode_brush
from vitp_pipeline.decoding.rle import decode_mask
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, ImageResult, ResultFormat
from vitp_pipeline.interop.results_coco import instances_json, write_instances

CONTROL, OBJECT = "label", "image"
"""Names of the tags BrushLabels and Image in the project's labeling configuration."""


def _cvat_json(spec: DatasetSpec, images: Sequence[dict[str, Any]], entries: Sequence[Any]) -> dict[str, Any]:
    (content,) = instances_json(spec, images, entries).values()
    return {"annotations/instances_default.json": content}


def _write_task(spec: DatasetSpec, image: ImageResult, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    height, width = image.size
    found, masks = [], image.instances()
    for number, (rle, category, score) in enumerate(zip(*masks, strict=True)):
        value = {"format": "rle", "rle": encode_brush(decode_mask(rle)), "brushlabels": [spec.classes[category].name]}
        found.append(
            {
                "id": f"{image.json_id}-{number}",
                "type": "brushlabels",
                "from_name": CONTROL,
                "to_name": OBJECT,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": float(score),
                "value": value,
            }
        )
    data = {"image": image.file_name, "file_name": image.file_name, "image_id": image.json_id}
    score = max(map(float, masks[2]), default=0.0)
    return {"data": data, "predictions": [{"model_version": "vitp", "score": score, "result": found}]}, []


def _tasks_json(spec: DatasetSpec, images: Sequence[dict[str, Any]], entries: Sequence[Any]) -> dict[str, Any]:
    tasks = []
    for about, entry in zip(images, entries, strict=True):
        own = {key: about[key] for key in ("uncertainty",) if key in about}
        prefix = about.get("url_prefix", "")
        data = {**entry["data"], "image": f"{prefix}{entry['data']['image']}", **own}
        tasks.append({**entry, "data": data})
    return {"tasks.json": tasks, "config.xml": labeling_config(spec)}


def labeling_config(spec: DatasetSpec) -> str:
    """Make the labeling configuration of a Label Studio project: its classes, and the names of its tags."""
    from html import escape

    labels = "".join(
        f'    <Label value="{escape(c.name)}" background="#{"".join(f"{v:02x}" for v in c.color)}"/>\n'
        for c in spec.classes
    )
    return (
        f'<View>\n  <Image name="{OBJECT}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{CONTROL}" toName="{OBJECT}">\n{labels}  </BrushLabels>\n</View>\n'
    )


def _colors(spec: DatasetSpec) -> dict[str, Any]:
    return {"colors": [list(c.color) for c in spec.classes]}


RESULT_FORMATS.add("cvat", ResultFormat(write_instances, ("instance",), False, _cvat_json))
RESULT_FORMATS.add("label-studio", ResultFormat(_write_task, ("instance",), False, _tasks_json, identity=_colors))
