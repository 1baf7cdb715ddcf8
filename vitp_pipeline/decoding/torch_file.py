"""Read files of `torch.save`, of either format, without torch's own unpickler.

    archives (since torch 1.6)   NAME/data.pkl, NAME/byteorder, and NAME/data/KEY, the bytes of a storage
    streams (before)             pickles of a number, a version, the machine, the content and the keys; then storages

Tensors lie inside their storages, and storages inside the file: none can be larger. Those of an archive are mapped
and read when they are used, so unused ones (such as an optimizer's state) are not even read.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from vitp_pipeline.decoding.safe_pickle import Ignored, RefusedPickle, SafeUnpickler, finished, pickle_errors

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_IGNORED, _HISTORY = Ignored(), Ignored()
TENSOR = ("torch._utils", "_rebuild_tensor_v2")
"""What a pickle calls to make a tensor of a storage."""


def read_torch_file(path: Path, content: bytes | None = None) -> Any:
    """Read what was saved: containers, numbers, text, numpy arrays, and tensors on the CPU.

    Args:
        content: of the file, where it has been read; else its tensors are mapped, and read when they are used.
    Raises:
        InputError: not such a file, damaged, or one that asks for more than data, which is named.
    """
    with pickle_errors(path, "file of torch.save", "save its tensors alone, by name, where it came from, and use that"):
        return _read(path if content is None else content)


def read_storage(content: bytes) -> Any:
    """Read a storage that was pickled outside of `torch.save`, for `rebuild_tensor`. Raises any error."""
    return _read(content)


class _Storage:
    """The memory of tensors, of which one can take a view."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """Make a view of a storage, checked to stay inside it and to have no more elements."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor without a storage")
    count, there = math.prod(size), storage.values.numel()
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if count and (last >= there or count > there):
        raise ValueError(f"a tensor of shape {tuple(size)} in a storage of {there}")
    return storage.values.as_strided(size, stride, offset if count else 0)


def _parameter(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    return tensor


def _getattr_of_history(owner: Any, name: Any) -> Ignored:
    """`getattr` as mmengine's pickles need it, to name the methods of its log histories, and for nothing else."""
    if owner is not _HISTORY:
        raise RefusedPickle("builtins.getattr")
    return owner


_KNOWN: dict[tuple[str, str], Any] = {
    TENSOR: rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _IGNORED,
    **{("torch", f"{kind}Storage"): dtype for kind, dtype in _STORAGES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): _IGNORED for dtype in _STORAGES.values()},
    **{("mmengine.logging" + module, "HistoryBuffer"): _HISTORY for module in ("", ".history_buffer")},
    **{(module, "getattr"): _getattr_of_history for module in ("builtins", "__builtin__")},
}


class _Unpickler(SafeUnpickler):
    """With storages from where `storage_of(key, dtype, number of elements)` finds them."""

    def __init__(self, file: IO[bytes], size: int, storage_of: Callable[[str, torch.dtype, int], torch.Tensor]) -> None:
        super().__init__(file, size, _KNOWN)
        self._storage_of, self._storages = storage_of, dict[str, _Storage]()

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(part is not None for part in pid[5:]):
            raise RefusedPickle(f"a {kind}" if kind == "module" else "an odd storage")
        if type(count) is not int or count < 0:
            raise ValueError("a storage without a size")
        if key not in self._storages:
            self._storages[key] = _Storage(self._storage_of(str(key), dtype, count))
        if self._storages[key].values.dtype != dtype:
            raise ValueError(f"storage {key} has two types")
        return self._storages[key]


def _read(source: Path | bytes) -> Any:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _read_archive(source, file)
        return _read_stream(file)


def _read_archive(source: Path | bytes, file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("its members are compressed")
        (program,) = (name for name in members if name.count("/") == 1 and name.endswith("/data.pkl"))
        folder = program.removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
        if order != b"little":
            raise ValueError("its numbers are big-endian")
        pickled = archive.read(program)
    content = np.frombuffer(bytearray(source), np.uint8) if isinstance(source, bytes) else _mapped(source)

    def storage_of(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        info = members[f"{folder}data/{key}"]
        if info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {info.file_size} bytes for {count} elements")
        header = content[info.header_offset : info.header_offset + 30].tobytes()
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))  # behind its name and more
        if start + info.file_size > len(content):
            raise ValueError(f"storage {key} is cut off")
        return _elements(content[start : start + info.file_size], dtype)

    return finished(_Unpickler(io.BytesIO(pickled), len(pickled), storage_of).load())


def _mapped(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, mode="c")  # what is written to it stays in memory


def _read_stream(file: IO[bytes]) -> Any:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    waiting: dict[str, torch.Tensor] = {}

    def storage_of(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        if count * dtype.itemsize + sum(values.nbytes for values in waiting.values()) > size:
            raise ValueError(f"storage {key} is larger than the file")
        waiting[key] = torch.empty(count, dtype=dtype)
        return waiting[key]

    if SafeUnpickler(file, size).load() != _MAGIC:
        raise ValueError("it begins otherwise")
    SafeUnpickler(file, size).load()  # a version, which never changed
    if SafeUnpickler(file, size).load().get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    content = finished(_Unpickler(file, size, storage_of).load())
    for key in SafeUnpickler(file, size).load():
        values = waiting.pop(str(key))
        (count,) = struct.unpack("<q", file.read(8))
        if count != values.numel():
            raise ValueError(f"storage {key} has another size")
        values.copy_(_elements(np.frombuffer(bytearray(file.read(values.nbytes)), np.uint8), values.dtype))
    if waiting:
        raise ValueError("it is cut off")
    return content


def _elements(content: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as a tensor of one dimension, which shares their memory where it can."""
    if dtype == torch.bool:  # other bytes than 0 and 1 are no booleans
        return torch.from_numpy(np.asarray(content != 0))
    if content.ctypes.data % dtype.itemsize:
        content = content.copy()
    return torch.from_numpy(np.asarray(content)).view(dtype)
