"""Choice of device and precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from vitp_pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """Choose a device: `auto` is CUDA where available. Raises UsageError for a missing device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: no such device", "Use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device", "See `vitp doctor`")
    return device


def precision_of(name: str, device: torch.device) -> str:
    """Resolve a precision: `auto` is bfloat16 where CUDA supports it, else float32."""
    import torch

    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def mixed_precision(name: str, device: torch.device) -> AbstractContextManager[object]:
    """Make an autocast context of a precision (`precision_of`)."""
    import torch

    name = precision_of(name, device)
    if name == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, name))
