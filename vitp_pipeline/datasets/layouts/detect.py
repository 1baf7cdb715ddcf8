"""The layouts that are known, in the order in which they are asked: the more a layout demands, the earlier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vitp_pipeline.datasets.identity import ENDINGS
from vitp_pipeline.datasets.layouts import (
    coco,
    detectron2,
    known_datasets,
    label_folders,
    mmseg,
    photographs,
    voc,
)
from vitp_pipeline.datasets.layouts.folder import Folder
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.errors import InputError

DETECTORS: tuple[Callable[[Folder], Layout | None], ...] = (
    known_datasets.detect,
    coco.detect,
    voc.detect,
    mmseg.detect,
    detectron2.detect,
    label_folders.detect,
    photographs.detect,
)


def detect_layout(root: Path) -> Layout:
    """See how a folder is laid out.

    Raises:
        InputError: not a folder, or it holds no image; label images that cannot be read as labels.
    """
    folder = Folder.at(root)
    for detect in DETECTORS:
        if (layout := detect(folder)) is not None:
            return layout
    raise InputError(f"{root}: no images there", f"Looked for {', '.join(ENDINGS)}, and for COCO's JSON files")
