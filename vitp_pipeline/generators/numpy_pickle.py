"""Pickles of numpy arrays, as detectron2's model zoo has them, and of results, as mmdetection writes them, read without
running what they ask for (facts §7).
"""

from __future__ import annotations

import codecs
import collections
import io
import pickle
from collections.abc import Mapping
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
    mend = "If the same weights exist as .pth or .safetensors, use that file"
    return _with_tensors(_read(path, _DataUnpickler, mend), path)


def read_result_pickle(path: Path) -> Any:
    """What a file of results holds: containers, numbers, text, numpy arrays, and tensors, on the CPU.

    Raises:
        InputError: as `read_numpy_pickle`.
    """
    return _read(path, _ResultUnpickler, "Write the results in another format")


def _read(path: Path, unpickler: type[pickle.Unpickler], mend: str) -> Any:
    try:
        with path.open("rb") as file:
            return unpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise InputError(f"{path}: refused: its pickle asks for {error}, which is not data", mend) from error
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{path}: not a readable pickle ({type(error).__name__}: {reason})", "Copy or fetch it again"
        ) from error


class _Refused(pickle.UnpicklingError):
    pass


class _DataUnpickler(pickle.Unpickler):
    known: Mapping[tuple[str, str], Any]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
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


_DataUnpickler.known = _DATA


class _ResultUnpickler(_DataUnpickler):
    """Tensors, too. Pickled outside of `torch.save`, one carries its storage as bytes of a torch file of its own, which
    torch would read with an unpickler that runs anything; here it is read as weights are."""

    known = _DATA | {
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): lambda content: torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        ),
    }


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
        raise InputError(
            f"{path}: holds an array of {content.dtype}, which no tensor can be", "Save its weights alone"
        ) from error
