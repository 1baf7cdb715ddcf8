"""Pickles of numpy arrays, as detectron2's model zoo has them, and of results, as mmdetection writes them.

What a file may ask for is decided by `decoding.safe_pickle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitp_pipeline.decoding.safe_pickle import SafeUnpickler, finished, pickle_errors
from vitp_pipeline.decoding.torch_file import TENSOR, read_storage, rebuild_tensor


def read_numpy_pickle(path: Path) -> Any:
    """Read containers, numbers and text, with arrays and numpy numbers as tensors on the CPU.

    Raises:
        InputError: not a pickle, damaged, or one that asks for more; what it asks for is named.
    """
    content = _read(path, {}, "save the same weights as .pth or .safetensors where it came from, and use that")
    if isinstance(content, dict):
        content = {name: _with_tensors(value) for name, value in content.items()}
    return content


def read_result_pickle(path: Path) -> Any:
    """Read containers, numbers, text, numpy arrays, and tensors, on the CPU.

    Tensors that were pickled outside of `torch.save` carry their storages as files of torch of their own.

    Raises:
        InputError: as `read_numpy_pickle`.
    """
    known = {TENSOR: rebuild_tensor, ("torch.storage", "_load_from_bytes"): read_storage}
    return _read(path, known, "write the results in another format")


def _read(path: Path, known: dict[tuple[str, str], Any], hint: str) -> Any:
    with pickle_errors(path, "pickle", hint), path.open("rb") as file:
        return finished(SafeUnpickler(file, path.stat().st_size, known).load())


def _with_tensors(content: Any) -> Any:
    """Convert arrays and numpy numbers in a table of weights to tensors."""
    if isinstance(content, dict):
        return {name: _tensor(value) for name, value in content.items()}
    return _tensor(content)


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
