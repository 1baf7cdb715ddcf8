"""Describe this installation: versions, devices, compiled operators."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "vitp-pipeline",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "zarr",
    "numcodecs",
    "pyarrow",
    "pycocotools",
    "mmengine",
    "mmsegmentation",
    "mmdet",
    "transformers",
)
MMCV = ("mmcv", "mmcv-lite", "onedl-mmcv")
"""Distributions of which each installs the module `mmcv`."""


def findings() -> Iterator[tuple[str, str]]:
    """List (item, finding) pairs, in reading order."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    for package in PACKAGES:
        yield package, _version(package) or "not installed"
    yield from _mmcv()
    yield from _devices()
    yield from _operators()


def _version(package: str) -> str:
    """Return the version of an installed distribution, else an empty text."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _mmcv() -> Iterator[tuple[str, str]]:
    """Say which mmcv is here, and warn of two, of which the one installed last has overwritten the other's files."""
    here = {package: found for package in MMCV if (found := _version(package))}
    yield from here.items() or [("mmcv", "not installed")]
    if len(here) > 1:
        names = " and ".join(here)
        yield (
            "mmcv conflict",
            f"{names} are both the module mmcv, so the files of one have overwritten the other's: "
            f"`pip uninstall {' '.join(here)}`, then install the one that you want",
        )


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        yield "device", f"CPU only ({torch.get_num_threads()} threads)"
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        bfloat = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB, {bfloat}"


def _operators() -> Iterator[tuple[str, str]]:
    present = importlib.util.find_spec("mmcv") is not None and importlib.util.find_spec("mmcv._ext") is not None
    yield "mmcv operators", "compiled" if present else "none: the plain torch versions are used (no need to act)"
    for module, what in (("DCNv3", "InternImage"), ("natten", "DiNAT"), ("faster_coco_eval", "fast AP")):
        found = importlib.util.find_spec(module) is not None
        yield module, "installed" if found else f"not installed (would speed up {what})"
