"""Pickles of numpy arrays, as detectron2's model zoo has them, read without running what they ask for (facts §7)."""

from __future__ import annotations

import codecs
import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitp_pipeline.errors import InputError


def read_numpy_pickle(path: Path) -> Any:
    """What the file holds, its arrays and numpy numbers as tensors on the CPU.

    Only containers, numbers, text and numpy arrays are let through.

    Raises:
        InputError: not a pickle, damaged, or one that asks for more; what it asks for is named.
    """
    try:
        with path.open("rb") as file:
            content = _DataUnpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise InputError(
            f"{path}: refused: its pickle asks for {error}, which is not data",
            mend="If the same weights exist as .pth or .safetensors, use that file",
        ) from error
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        raise InputError(f"{path}: not a readable pickle ({type(error).__name__}: {error})") from error
    return _with_tensors(content, path)


class _Refused(pickle.UnpicklingError):
    pass


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _DATA[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("data outside of the file")


def _scalar(dtype: np.dtype, content: Any = None) -> Any:
    if dtype.hasobject:
        raise _Refused("numpy objects")
    return _NUMPY_SCALAR(dtype, content)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes in pickles of protocol 2; other encodings can do more than that."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"the encoding {encoding}")
    return codecs.encode(text, "latin1")


_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_DATA: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
    _DATA |= {(_module, "_reconstruct"): _RECONSTRUCT, (_module, "scalar"): _scalar}


def _with_tensors(content: Any, path: Path) -> Any:
    if isinstance(content, dict):
        return {name: _with_tensors(value, path) for name, value in content.items()}
    if not isinstance(content, np.ndarray | np.generic):
        return content
    try:
        native = np.array(
            content, dtype=content.dtype.newbyteorder("="), order="C"
        )  # writable, and not the file's bytes
        return torch.from_numpy(native)
    except TypeError as error:
        raise InputError(f"{path}: holds an array of {content.dtype}, which no tensor can be") from error
