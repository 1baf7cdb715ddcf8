"""Results as PNG files of label values: for the ADE20K server, and for mmsegmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.errors import UsageError
from vitp_pipeline.interop.png_files import write_labels
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, ImageResult, ResultFormat


def _write(
    spec: DatasetSpec, image: ImageResult, folder: Path, colored: bool = False
) -> tuple[dict[str, Any], list[Path]]:
    file = folder / f"{image.name}.png"
    write_labels(file, spec, image.semantic(), colored)
    return {}, [file]


def _write_colored(spec: DatasetSpec, image: ImageResult, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    return _write(spec, image, folder, colored=True)


def _colors(spec: DatasetSpec) -> dict[str, Any]:
    return {"colors": [list(c.color) for c in spec.classes]}


def _check_ade20k(spec: DatasetSpec) -> None:
    labels = [c.label for c in spec.classes]
    if not (min(labels) >= 1 and max(labels) <= 255):
        raise UsageError(
            f"format ade20k: label values must be 1 to 255, those of manifest {spec.name!r} are "
            f"{min(labels)} to {max(labels)}"
        )


RESULT_FORMATS.add("ade20k", ResultFormat(_write, ("semantic",), check=_check_ade20k))
RESULT_FORMATS.add("label-png", ResultFormat(_write_colored, ("semantic",), identity=_colors))
