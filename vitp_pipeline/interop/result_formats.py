"""Formats of results that other tools read: which maps they hold, how an image is written, and what ids mean there.

| format | files | ids | read by |
|---|---|---|---|
| `coco-panoptic` | panoptic/NAME.png (R + 256·G + 65536·B), panoptic.json | the manifest's label values | panopticapi |
| `coco-results` | results.json (run lengths), images.json | the manifest's label values | pycocotools |
| `coco-instances` | instances.json, a data set with scores | the manifest's label values | FiftyOne, supervision |
| `cityscapes` | semantic/NAME.png, instance/NAME.txt and masks/ | Cityscapes' label ids | cityscapesScripts |
| `ade20k` | NAME.png | the manifest's label values, from 1 | the ADE20K server |
| `label-png` | NAME.png, with the manifest's colors as its palette | the manifest's label values | mmsegmentation |

NAME is that of the image's file; where two images have one, with its folders (`identity.result_names`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.decoding.rle import Rle, decode_mask
from vitp_pipeline.errors import UsageError
from vitp_pipeline.postprocess.panoptic import Segment
from vitp_pipeline.storage.atomic_files import write_whole

FORMATS = ("coco-panoptic", "coco-results", "coco-instances", "cityscapes", "ade20k", "label-png")
FILE_AN_IMAGE = ("coco-panoptic", "cityscapes", "ade20k", "label-png")
"""Those that have files called by images."""

# label ids of the benchmark by name (cityscapesScripts, helpers/labels.py); those from 24 on have instances
CITYSCAPES = {"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19}
CITYSCAPES |= {"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26}
CITYSCAPES |= {"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}


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


def check_format(name: str, spec: DatasetSpec) -> None:
    """Raise UsageError when the format is unknown, or the manifest lacks what its ids are made of."""
    if name not in FORMATS:
        raise UsageError(f"--format {name!r}", f"Choose one of: {', '.join(FORMATS)}")
    labels = [c.label for c in spec.classes]
    if name == "cityscapes" and (odd := [c.name for c in spec.classes if c.name not in CITYSCAPES]):
        raise UsageError(f"format cityscapes: {odd[0]!r} of manifest {spec.name!r} is none of Cityscapes' 19 classes")
    if name == "ade20k" and not (min(labels) >= 1 and max(labels) <= 255):
        raise UsageError(
            f"format ade20k: label values must be 1 to 255, those of manifest {spec.name!r} are "
            f"{min(labels)} to {max(labels)}"
        )
    if name in ("coco-results", "coco-instances", "cityscapes") and not any(spec.things):
        raise UsageError(f"format {name}: manifest {spec.name!r} has no things, so there are no instances")


def write_image(
    name: str, spec: DatasetSpec, image: ImageResult, folder: Path
) -> tuple[dict[str, Any] | list[Any], list[Path]]:
    """Write the files of one image; returns what of it enters the format's JSON file, and the files."""
    if name == "coco-panoptic":
        return _coco_panoptic(spec, image, folder)
    if name == "coco-results":
        return _coco_results(spec, image), []
    if name == "coco-instances":
        return [entry | _extent(entry["segmentation"]) for entry in _coco_results(spec, image)], []
    if name == "cityscapes":
        return {}, _cityscapes(spec, image, folder)
    file = folder / f"{image.name}.png"
    write_labels(file, spec, image.semantic(), colored=name == "label-png")
    return {}, [file]


def palette(spec: DatasetSpec) -> list[tuple[int, int, int]]:
    """256 colors by label value."""
    colors = [(0, 0, 0)] * 256
    for info in spec.classes:
        if info.label < 256:
            colors[info.label] = info.color
    return colors


def json_files(name: str, spec: DatasetSpec, images: list[dict[str, Any]], entries: list[Any]) -> dict[str, Any]:
    """File name → content of the format's JSON files.

    Args:
        images: id, file_name, height and width of all images.
        entries: what `write_image` returned for them.
    """
    if name == "coco-panoptic":
        categories = [{"id": c.label, "name": c.name, "isthing": int(c.thing)} for c in spec.classes]
        return {"panoptic.json": {"images": images, "annotations": entries, "categories": categories}}
    if name == "coco-instances":
        found = [{"id": n, "iscrowd": 0, **e} for n, e in enumerate((e for own in entries for e in own), 1)]
        categories = [{"id": c.label, "name": c.name} for c in spec.classes]
        return {"instances.json": {"images": images, "annotations": found, "categories": categories}}
    if name == "coco-results":
        return {"results.json": [entry for of_image in entries for entry in of_image], "images.json": images}
    return {}


def _coco_panoptic(spec: DatasetSpec, image: ImageResult, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    ids, segments = image.panoptic()
    file = folder / "panoptic" / f"{image.name}.png"
    write_png(file, rgb_of_ids(ids))
    listed = [{"id": s.id, "category_id": spec.classes[s.category].label} for s in segments]
    return {"image_id": image.json_id, "file_name": f"{image.name}.png", "segments_info": listed}, [file]


def rgb_of_ids(ids: np.ndarray) -> np.ndarray:
    """(H, W) segment ids → (H, W, 3) uint8, R + 256·G + 65536·B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


def _coco_results(spec: DatasetSpec, image: ImageResult) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image.json_id,
            "category_id": spec.classes[category].label,
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
            "score": float(score),
        }
        for rle, category, score in zip(*image.instances(), strict=True)
    ]


def _extent(rle: Rle) -> dict[str, Any]:
    """Box [x, y, width, height] and area of a mask."""
    from pycocotools import mask as coco

    return {"bbox": coco.toBbox(rle).tolist(), "area": int(coco.area(rle))}


def _cityscapes(spec: DatasetSpec, image: ImageResult, folder: Path) -> list[Path]:
    ids = np.array([*(CITYSCAPES[c.name] for c in spec.classes), 0])  # the last, IGNORE, is unlabeled
    labels, file = folder / "semantic" / f"{image.name}.png", folder / "instance" / f"{image.name}.txt"
    write_png(labels, ids[image.semantic()].astype(np.uint8))
    lines, masks = [], []
    for n, (rle, category, score) in enumerate(zip(*image.instances(), strict=True)):
        mask = f"masks/{file.stem}_{n:03d}.png"
        masks.append(file.parent / mask)
        write_png(masks[-1], decode_mask(rle).astype(np.uint8) * 255)
        lines.append(f"{mask} {ids[category]} {float(score)!r}\n")
    write_whole(file, "".join(lines))
    return [labels, *masks, file]


def write_labels(path: Path, spec: DatasetSpec, classes: np.ndarray, colored: bool) -> None:
    """Write (H, W) class indices as a PNG of label values: of 8 bits, `colored` with a palette; of 16 bits where any of
    the manifest's labels needs them, so that all files of a dataset have the same form.
    """
    if max(spec.void_label, *(info.label for info in spec.classes)) > 255:
        write_png(path, spec.label_values(classes).astype(np.uint16))
    else:
        write_png(path, spec.label_values(classes).astype(np.uint8), palette(spec) if colored else None)


def write_png(path: Path, pixels: np.ndarray, palette: list[tuple[int, int, int]] | None = None) -> None:
    """(H, W) or (H, W, 3) pixels as a PNG. Raises StorageError."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette([channel for color in palette for channel in color])
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_whole(path, content.getbuffer())
