"""Masks in a pickle of mmdetection's test script."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitp_pipeline.datasets.identity import Claims
from vitp_pipeline.decoding.records import shown
from vitp_pipeline.errors import InputError
from vitp_pipeline.interop.mask_content import Detection
from vitp_pipeline.interop.mask_import import MASK_FORMATS, Detections, Found, ImageSet, image_id_in


@MASK_FORMATS.register("mmdet")
def open_mmdet(path: Path, dataset: ImageSet, no_object_share: float) -> Detections:
    """Categories are class indices."""
    indices, hint = {k: k for k in range(len(dataset.spec.classes))}, "Test the model with mmdetection 3.x"
    return Detections(path, hint, indices, lambda claims: read_mmdet(path, claims), dataset, no_object_share)


def read_mmdet(path: Path, claims: Claims) -> dict[str, Found]:
    """Read the output of `tools/test.py --out FILE.pkl` of mmdetection 3.x, without running what the pickle asks for.

    Labels are class indices, in the order of the model's classes, which the file does not name.

    Raises:
        InputError: not such a file, two claims on one image, one without masks, or one of mmdetection 2.x, which does
            not name its images.
    """
    from vitp_pipeline.generators.safe_pickle import read_result_pickle

    content = read_result_pickle(path)
    if not isinstance(content, list) or not any(isinstance(entry, dict) for entry in content):
        raise InputError(
            f"{path}: not what mmdetection 3.x writes; files of 2.x do not say which image is which",
            "Write COCO's results with it (--format-only) and import those with --from coco",
        )
    instances_of = [entry.get("pred_instances") if isinstance(entry, dict) else None for entry in content]
    if not any(isinstance(instances, dict) and "masks" in instances for instances in instances_of):
        raise InputError(f"{path}: no image has pred_instances.masks", "Test a model that has masks")
    found: dict[str, Found] = {}
    for number, (entry, instances) in enumerate(zip(content, instances_of, strict=True)):
        where = f"{path}: entry {number}"
        if (name := image_id_in(entry, "img_id", where, claims)) is None:
            continue
        if (image_id := _image_of(name, str(entry.get("img_path") or ""), where, claims)) is None:
            continue
        if image_id in found:
            raise InputError(f"{where} is of image {shown(name)} again")
        try:
            labels, scores = (np.asarray(instances[key]).tolist() for key in ("labels", "scores"))  # type: ignore[index]
            columns = zip(labels, scores, instances["masks"], strict=True)  # type: ignore[index]
            found[image_id] = [
                Detection(f"mask {n} of image {shown(name)}", *column) for n, column in enumerate(columns)
            ]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            hint = "It needs masks, labels and scores, as many of each"
            found[image_id] = InputError(
                f"{path}: image {shown(name)}: no pred_instances as mmdetection writes ({error!r})", hint
            )
    return found


def _image_of(key: str, file: str, where: str, claims: Claims) -> str | None:
    """Find the image of the split that an entry's img_id means, or else its img_path."""
    index = claims.index
    place, named = index.by_id(key), index.by_path(file)
    if place is not None and named is not None and place != named:
        raise InputError(
            f"{where}: its img_id {key!r} is {index.describe(place)}, but its img_path {file!r} is "
            f"{index.describe(named)}",
            "Test the model on the data set's own annotation file",
        )
    return claims.add(key, named if place is None else place)
