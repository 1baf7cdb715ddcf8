"""Name the packages of OpenMMLab that vitp needs, and the line that installs those that are not there."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

NEEDS = {
    "mmengine": ("mmengine", "onedl-mmengine"),
    "mmcv": ("mmcv", "mmcv-lite", "onedl-mmcv"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "ftfy": ("ftfy",),
    "regex": ("regex",),
}
"""Modules, each with the distributions that may bring it. The last two are imported by mmsegmentation's tokenizer."""

EXTRA = 'pip install "vitp-pipeline[openmmlab]"'


def install_line(lacking: Iterable[str | None]) -> str:
    """Return the command that installs modules which are not there.

    The extra brings mmcv-lite, which would overwrite an mmcv with compiled operators: both are the module `mmcv`. So
    where there is an mmcv, the others are named one by one; none of them brings mmcv.
    """
    if find_spec("mmcv") is None:
        return EXTRA
    return " ".join(["pip install", *(NEEDS.get(name or "", (name or "",))[0] for name in lacking)])
