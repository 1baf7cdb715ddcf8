"""Read arrays of untrusted .npz and .npy files: header and size are checked before anything is allocated.

Only plain numbers are let through (booleans, integers, reals of at most 64 bits), nothing is unpickled, and no more is
unpacked than a header says and a limit allows.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from vitp_pipeline.decoding.archives import AT_ONCE, open_file, open_member
from vitp_pipeline.decoding.records import shown
from vitp_pipeline.errors import InputError

LARGEST, LARGEST_IN_PIECES = 2**32, 2**36
"""Bytes of an array that is read at once, unpacked, and of one that is read piece by piece."""
_HEADER = 2**14


@dataclass(frozen=True)
class ArrayHeader:
    """Header of an array file, found to agree with the file's size.

    Attributes:
        start: bytes before the numbers.
        fortran: whether the first axis runs fastest.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int


class ArrayFile:
    """The arrays of an .npz file, or the one of an .npy file, to be used in a `with`.

    Attributes:
        names: of its arrays; "" of that of an .npy file.
    Raises:
        InputError: not such a file, damaged, or with an array of something else than numbers; from any method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_file(path)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        if path.suffix == ".npy":
            self.names: tuple[str, ...] = ("",)
            return
        try:
            with self._damage():
                self._zip = zipfile.ZipFile(self._file)
                members = [m for m in self._zip.infolist() if m.filename.endswith(".npy")]
            self._members = {m.filename.removesuffix(".npy"): m for m in members}
            if len(self._members) < len(members):
                raise InputError(f"{path}: has two arrays of one name", "Write it with numpy.savez")
        except BaseException:
            self._file.close()
            raise
        self.names = tuple(self._members)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # damaged archives fail in many ways
            how = "numpy.save" if self._zip is None and self.path.suffix == ".npy" else "numpy.savez"
            raise InputError(f"{self.path}: cannot be read ({error!r})", f"Write it with {how}") from error

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        """Open an array's file from its beginning."""
        if self._zip is None:
            self._file.seek(0)
            yield self._file
            return
        with open_member(self._zip, self._members[name], LARGEST_IN_PIECES, self.path) as file:
            yield file

    def _size(self, name: str) -> int:
        return os.fstat(self._file.fileno()).st_size if self._zip is None else self._members[name].file_size

    def header(self, name: str) -> ArrayHeader:
        """Read shape and dtype of an array, and check them against its bytes in the file."""
        where = f"{self.path}: array {name!r}" if name else f"{self.path}: it"
        with self._damage(), self._open(name) as file:
            head = io.BytesIO(file.read(_HEADER))
        try:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[np.lib.format.read_magic(head)](head)
        except Exception as error:  # its text is parsed as Python's
            raise InputError(f"{where} has no header of numpy's ({shown(str(error))})") from error
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise InputError(f"{where} is of {shown(str(dtype))}, not of numbers", "Write it as numbers")
        size, holds = math.prod(shape) * dtype.itemsize, self._size(name) - head.tell()
        if any(type(n) is not int or n < 0 for n in shape) or size != holds:
            raise InputError(f"{where} says it is {shown(shape)} of {dtype}, and holds {holds} bytes")
        return ArrayHeader(shape, dtype, fortran and len(shape) > 1, head.tell())

    def read(self, name: str) -> np.ndarray:
        """Read an array of at most `LARGEST` bytes."""
        header = self.header(name)
        if (size := math.prod(header.shape) * header.dtype.itemsize) > LARGEST:
            raise InputError(f"{self.path}: array {name!r} has {size / 1e9:.1f} GB, more than {LARGEST / 1e9:.1f}")
        (whole,) = self._pieces(name, header, math.prod(header.shape), 1)
        return whole.reshape(header.shape, order="F" if header.fortran else "C")

    def planes(self, name: str) -> Iterator[np.ndarray]:
        """Read an array piece by piece along its first axis, so that one piece is held; all where that runs fastest.

        An array without any number gives no piece.
        """
        header = self.header(name)
        if not math.prod(header.shape):
            return
        if header.fortran:
            yield from self.read(name)
            return
        for plane in self._pieces(name, header, math.prod(header.shape[1:]), header.shape[0]):
            yield plane.reshape(header.shape[1:])

    def _pieces(self, name: str, header: ArrayHeader, length: int, count: int) -> Iterator[np.ndarray]:
        with self._damage(), self._open(name) as file:
            file.read(header.start)
            for _ in range(count):
                piece = np.empty(length, header.dtype)
                rest = piece.view(np.uint8)
                while len(rest):
                    content = np.frombuffer(file.read(min(len(rest), AT_ONCE)), np.uint8)
                    if not len(content):
                        raise InputError(f"{self.path}: array {name!r} ends in the middle")
                    rest[: len(content)] = content
                    rest = rest[len(content) :]
                yield piece
