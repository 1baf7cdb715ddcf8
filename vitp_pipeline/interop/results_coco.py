"""Results as COCO's own tools read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.decoding.rle import Rle
from vitp_pipeline.interop.png_files import rgb_of_ids, write_png
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, ImageResult, ResultFormat


def _write_panoptic(spec: DatasetSpec, image: ImageResult, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    ids, segments = image.panoptic()
    file = folder / "panoptic" / f"{image.name}.png"
    write_png(file, rgb_of_ids(ids))
    listed = [{"id": s.id, "category_id": spec.classes[s.category].label} for s in segments]
    return {"image_id": image.json_id, "file_name": f"{image.name}.png", "segments_info": listed}, [file]


def _panoptic_json(spec: DatasetSpec, images: Sequence[dict[str, Any]], entries: Sequence[Any]) -> dict[str, Any]:
    categories = [{"id": c.label, "name": c.name, "isthing": int(c.thing)} for c in spec.classes]
    return {"panoptic.json": {"images": _plain(images), "annotations": entries, "categories": categories}}


def _detections(spec: DatasetSpec, image: ImageResult) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image.json_id,
            "category_id": spec.classes[category].label,
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
            "score": float(score),
        }
        for rle, category, score in zip(*image.instances(), strict=True)
    ]


def _plain(images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what is meant for another format."""
    return [{key: value for key, value in image.items() if key != "url_prefix"} for image in images]


def _extent(rle: Rle) -> dict[str, Any]:
    """Box [x, y, width, height] and area of a mask."""
    from pycocotools import mask as coco

    return {"bbox": coco.toBbox(rle).tolist(), "area": int(coco.area(rle))}


def _write_results(spec: DatasetSpec, image: ImageResult, folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    return _detections(spec, image), []


def write_instances(spec: DatasetSpec, image: ImageResult, folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return an image's objects with box, area and score; there are no files of it."""
    return [entry | _extent(entry["segmentation"]) for entry in _detections(spec, image)], []


def _results_json(spec: DatasetSpec, images: Sequence[dict[str, Any]], entries: Sequence[Any]) -> dict[str, Any]:
    return {"results.json": [entry for of_image in entries for entry in of_image], "images.json": _plain(images)}


def instances_json(spec: DatasetSpec, images: Sequence[dict[str, Any]], entries: Sequence[Any]) -> dict[str, Any]:
    """Make instances.json of the objects of all images."""
    found = [{"id": n, "iscrowd": 0, **e} for n, e in enumerate((e for own in entries for e in own), 1)]
    categories = [{"id": c.label, "name": c.name} for c in spec.classes]
    return {"instances.json": {"images": _plain(images), "annotations": found, "categories": categories}}


RESULT_FORMATS.add("coco-panoptic", ResultFormat(_write_panoptic, ("panoptic",), json=_panoptic_json))
RESULT_FORMATS.add("coco-results", ResultFormat(_write_results, ("instance",), False, _results_json))
RESULT_FORMATS.add("coco-instances", ResultFormat(write_instances, ("instance",), False, instances_json))
