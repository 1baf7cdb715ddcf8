"""Read generator checkpoints without executing pickles, and load them strictly.

A `.pth` file is a pickle: `decoding.torch_file` and `decoding.safe_pickle` say what it may ask for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitp_pipeline.decoding.torch_file import read_torch_file
from vitp_pipeline.decoding.weight_names import unwrapped
from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.generators.safe_pickle import read_numpy_pickle

SHOWN = 5
AGAIN = "Copy or download it again: it may be truncated, or another kind of file"
WANTED = "Give a file of weights: tensors by name, alone or as its state_dict or model"


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and class names if the file has them."""

    path: Path
    state_dict: Mapping[str, torch.Tensor]
    classes: tuple[str, ...] | None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read `.pth`, `.safetensors`, or `.pkl` as the model zoo of detectron2 has it; tensors on the CPU.

    A pickle holds `{"state_dict": ..., "meta": ...}`, or `{"model": ...}` as detectron2 writes, or is flat.

    Raises:
        InputError: the file is missing, damaged, holds no weights, or is a pickle that wants more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: checkpoint not found", "Correct the path")
    if path.suffix == ".safetensors":
        content, meta = _read_safetensors(path)
    else:
        read = read_numpy_pickle if path.suffix == ".pkl" else read_torch_file
        content, meta = _weights_of(read(path), path)
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        shown = " ".join(", ".join(map(str, list(content)[:SHOWN])).split()) or "nothing"
        raise InputError(f"{path}: holds no state_dict (it has {shown})", WANTED)
    return Checkpoint(path, unwrapped(content), _class_names(meta))


def load_into(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Load all weights into all parameters and buffers of `model`.

    Raises:
        IncompatibleError: a tensor is missing, left over, or of another shape; the first few are named.
    """
    expected = model.state_dict()
    given = checkpoint.state_dict
    wrong = [
        f"{name} is {tuple(given[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    hint = "Config and checkpoint must be of the same model"
    if wrong:
        raise IncompatibleError(f"{checkpoint.path}: other shapes: {first_of(wrong, '; ')}", hint=hint)
    try:
        missing, unexpected = model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        raise IncompatibleError(f"{checkpoint.path}: {error}", hint=hint) from error
    faults = [f"missing {first_of(missing)}"] if missing else []
    faults += [f"not in the model {first_of(unexpected)}"] if unexpected else []
    if faults:
        raise IncompatibleError(f"{checkpoint.path}: tensors {', and '.join(faults)}", hint=hint)


def first_of(names: Sequence[str], separator: str = ", ") -> str:
    """Format the first few names, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + rest


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})", AGAIN) from error
    if "classes" in meta:  # safetensors metadata is text: a JSON list
        try:
            meta["classes"] = json.loads(meta["classes"])
        except ValueError as error:
            raise InputError(
                f"{path}: its 'classes' metadata is not JSON", "Write it as a JSON list of names"
            ) from error
    return tensors, {"dataset_meta": meta}


def _weights_of(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no state_dict (it is a {type(content).__name__})", WANTED)
    for key in ("state_dict", "model"):
        inner = content.get(key)
        if isinstance(inner, dict):
            return inner, content.get("meta")
    return content, None


def _class_names(meta: Any) -> tuple[str, ...] | None:
    """Return `dataset_meta.classes` of mmengine, or `CLASSES` of its predecessors."""
    if not isinstance(meta, dict):
        return None
    for holder in (meta.get("dataset_meta"), meta):
        if isinstance(holder, dict):
            for key in ("classes", "CLASSES"):
                names = holder.get(key)
                if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                    return tuple(names)
    return None
