"""Label Studio's JSON export: tasks whose annotations are brush masks, polygons or rectangles.

An image's file name is `file_name` in its task's data, as `vitp export-results --format label-studio` writes it, or
else the path of `image` there. Classes go by name. Of several annotations of a task the newest that was not cancelled
counts; tasks without one are left out, so a half-labeled project is a split of what is labeled.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from vitp_pipeline.datasets.annotations import InstanceAnnotations
from vitp_pipeline.datasets.label_kinds.coco_instances import look_at_objects, read_objects
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, LabelKind
from vitp_pipeline.decoding.brush_rle import decode_brush
from vitp_pipeline.decoding.limits import check_pixels
from vitp_pipeline.decoding.records import shown, whole_number
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.errors import InputError


class LabelStudioAnnotations(InstanceAnnotations):
    """Tasks as an annotation file: an entry an object."""

    what = "Label Studio"

    def _take(self, data: Any) -> None:
        if not isinstance(data, list) or not all(isinstance(task, dict) for task in data):
            raise InputError(
                f"{self.path}: not Label Studio's JSON, a list of tasks", "Export it as JSON, not JSON-MIN"
            )
        super()._take(self._as_coco(data))

    def _as_coco(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, task in enumerate(tasks):
            where = f"{self.path}: task {shown(task.get('id', number))}"
            if (results := _results(task, where)) is None:
                continue
            data = task.get("data")
            if not isinstance(data, dict):
                raise InputError(f"{where} has no `data`")
            image_id = data.get("image_id", task.get("id", number))
            image = {"id": image_id, "file_name": _file_name(data, where)}
            for result in results:
                if (entry := self._object(result, where)) is None:
                    continue
                size = entry.pop("size")
                image |= {"height": size[0], "width": size[1]}
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **entry})
            images.append(image)
        categories = [{"id": info.label, "name": info.name} for info in self.spec.classes]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _object(self, result: dict[str, Any], where: str) -> dict[str, Any] | None:
        """Convert a result to an entry of COCO's, with `size`; None for one that is no object."""
        kind, value = result.get("type"), result.get("value")
        if kind not in ("brushlabels", "polygonlabels", "rectanglelabels"):
            return None  # relations, choices, texts
        if not isinstance(value, dict):
            raise InputError(f"{where}: a result has no `value`")
        names = value.get(kind)
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise InputError(f"{where}: a result has the classes {shown(names)}, not one", "Give each region one label")
        label = next((info.label for info in self.spec.classes if info.is_called(names[0])), None)
        if label is None:
            raise InputError(
                f"{where}: {shown(names[0])} is not a class of manifest {self.spec.name!r}", "Add it as an alias"
            )
        height, width = (
            whole_number(result.get(key), f"{where}: `{key}`") for key in ("original_height", "original_width")
        )
        check_pixels(width, height, where)
        entry: dict[str, Any] = {"category_id": label, "size": (height, width)}
        if kind == "brushlabels":
            try:
                rle = encode_mask(decode_brush(value.get("rle", ()), (height, width)))
            except ValueError as error:
                raise InputError(f"{where}: the run lengths {error}") from error
            counts = rle["counts"].decode("ascii")
            return {**entry, "segmentation": {"size": [height, width], "counts": counts}}
        if kind == "polygonlabels":
            points = _numbers(value.get("points"), where) * (width / 100, height / 100)
            return {**entry, "segmentation": [points.ravel().tolist()]}
        sides = [[value.get("x"), value.get("y")], [value.get("width"), value.get("height")]]
        (left, top), (across, down) = (_numbers(sides, where) * (width / 100, height / 100)).tolist()
        return {**entry, "bbox": [left, top, across, down]}


def _results(task: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """Return the results of the annotation that counts; None of a task without one."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        raise InputError(f"{where} has no `annotations`", "Export it as JSON, not JSON-MIN")
    valid = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled") and not a.get("skipped")]
    if not valid:
        return None
    newest = max(valid, key=lambda annotation: str(annotation.get("updated_at", "")))
    results = newest.get("result")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise InputError(f"{where} has no `result`")
    return results


def _file_name(data: dict[str, Any], where: str) -> str:
    name = data.get("file_name")
    if isinstance(name, str):
        return name
    if not isinstance(url := data.get("image"), str):
        raise InputError(f"{where} has neither `file_name` nor `image` in its data")
    parts = urlsplit(url)
    local = parse_qs(parts.query).get("d", [])
    return (local[0] if local else unquote(parts.path)).lstrip("/")


def _numbers(values: Any, where: str) -> np.ndarray:
    """Return (N, 2) float64 of pairs. Raises InputError for what is none, or not finite."""
    try:
        pairs = np.array(values, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {shown(values)} are no points") from error
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all():
        raise InputError(f"{where}: {shown(values)} are no points")
    return pairs


LABEL_KINDS.add(
    "label-studio",
    LabelKind(
        read_objects, look_at_objects, annotations=LabelStudioAnnotations, file_per_image=False, has_objects=True
    ),
)
