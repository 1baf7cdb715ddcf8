"""Results as the scripts of Cityscapes read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.decoding.rle import decode_mask
from vitp_pipeline.errors import UsageError
from vitp_pipeline.interop.png_files import write_png
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, ImageResult, ResultFormat
from vitp_pipeline.storage.atomic_files import write_whole

# label ids of the benchmark by name (cityscapesScripts, helpers/labels.py); those from 24 on have instances
CITYSCAPES = {"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19}
CITYSCAPES |= {"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26}
CITYSCAPES |= {"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}


def _check(spec: DatasetSpec) -> None:
    if odd := [c.name for c in spec.classes if c.name not in CITYSCAPES]:
        raise UsageError(f"format cityscapes: {odd[0]!r} of manifest {spec.name!r} is none of Cityscapes' 19 classes")


def _write(spec: DatasetSpec, image: ImageResult, folder: Path) -> tuple[dict[str, Any], list[Path]]:
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
    return {}, [labels, *masks, file]


RESULT_FORMATS.add("cityscapes", ResultFormat(_write, ("semantic", "instance"), check=_check, ending="_10000.png"))
