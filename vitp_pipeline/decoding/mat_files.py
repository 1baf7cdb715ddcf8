"""Read an array of numbers from untrusted MATLAB files of version 5 (`.mat`, up to MATLAB's -v7).

scipy.io.loadmat reads every kind of variable, allocates what a compressed one unpacks to, and crashes on some damaged
files. This reader knows arrays of real numbers only. Format: MathWorks, "MAT-File Format", chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitp_pipeline.decoding.archives import read_bytes
from vitp_pipeline.errors import InputError

LARGEST = 2**28
"""Bytes of a file, and of all its variables once unpacked."""
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""The format's types of stored numbers, by their tag."""
NUMBERS = range(6, 16)
"""MATLAB's classes double, single, int8 to uint64. The others hold text, further variables, or names of functions."""
_HEADER, _MATRIX, _COMPRESSED = 128, 14, 15
_COMPLEX, _OPAQUE = 0x0800, 17


class _DamagedError(Exception):
    """The bytes are no valid file; the message says why."""


def read_mat_array(path: Path, name: str) -> np.ndarray:
    """Read a variable, in the shape that it has in MATLAB (at least two axes) and the type that it is stored in: whole
    numbers of class double may be stored as uint8.

    Raises:
        InputError: missing, damaged, too large, of another version, or the variable is missing, there twice, or
            something else than real numbers.
    """
    try:
        content = read_bytes(path, LARGEST)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER], "")
    if not order or struct.unpack(f"{order}H", content[124:126]) != (0x0100,):
        raise InputError(f"{path}: is not a MATLAB file of version 5", "Save it in MATLAB with -v7 or -v6")
    try:
        found = [v for v in (_Variable.of(part, order) for part in _variables(content, order)) if v.name == name]
        if len(found) != 1:
            raise InputError(f"{path}: has {len(found) or 'no'} variables {name!r}", "Is it a file of this dataset?")
        if found[0].kind not in NUMBERS or found[0].complex:
            raise InputError(f"{path}: the variable {name!r} is not an array of real numbers")
        return found[0].array(order)
    except (_DamagedError, zlib.error) as error:
        raise InputError(f"{path}: is damaged ({error})", "Copy or fetch it again") from error


@dataclass(frozen=True)
class _Variable:
    """A variable's header, and the bytes behind it.

    Attributes:
        kind: MATLAB's class.
    """

    name: str
    kind: int
    complex: bool
    shape: tuple[int, ...]
    rest: memoryview

    @classmethod
    def of(cls, content: memoryview, order: str) -> _Variable:
        """Parse the content of a matrix element."""
        kind, flags, rest = _element(content, order)
        if kind != 6 or len(flags) != 8:
            raise _DamagedError("a variable has no class")
        (word,) = struct.unpack_from(f"{order}I", flags)
        if word & 255 == _OPAQUE:  # it has other parts, no array among them
            return cls("", _OPAQUE, False, (), rest)
        kind, sizes, rest = _element(rest, order)
        if kind != 5 or not 8 <= len(sizes) <= 256 or len(sizes) % 4:
            raise _DamagedError("a variable has no shape")
        _, name, rest = _element(rest, order)
        shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
        return cls(bytes(name).decode("latin-1"), word & 255, bool(word & _COMPLEX), shape, rest)

    def array(self, order: str) -> np.ndarray:
        kind, stored, _ = _element(self.rest, order)
        if kind not in TYPES:
            raise _DamagedError(f"numbers of type {kind}")
        dtype = np.dtype(TYPES[kind])
        if min(self.shape) < 0 or math.prod(self.shape) * dtype.itemsize != len(stored):
            raise _DamagedError(f"{len(stored)} bytes of numbers do not fill its shape")
        numbers = np.frombuffer(stored, f"{order}{TYPES[kind]}").astype(dtype)
        return numbers.reshape(self.shape, order="F")


def _variables(content: bytes, order: str) -> Iterator[memoryview]:
    """Give the content of each matrix element, unpacked."""
    whole, place, unpacked = memoryview(content), _HEADER, 0
    while place + 8 <= len(whole):
        kind, length = struct.unpack_from(f"{order}II", whole, place)
        part, place = whole[place + 8 : place + 8 + length], place + 8 + length
        if len(part) < length:
            raise _DamagedError("it ends in the middle of a variable")
        if kind == _COMPRESSED:
            packed = zlib.decompressobj()
            # with the 8 bytes of the tag of what was packed
            element = memoryview(packed.decompress(part, LARGEST - unpacked + 1))
            unpacked += len(element)
            if unpacked > LARGEST:
                raise _DamagedError(f"its variables unpack to more than {LARGEST / 1e6:g} MB")
            if not packed.eof:
                raise _DamagedError("a variable ends in the middle")
            kind, part, _ = _element(element, order)
        if kind == _MATRIX:
            yield part


def _element(content: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Split off the first data element: (type, its bytes, what follows it)."""
    if len(content) < 8:
        raise _DamagedError("a variable ends in the middle")
    kind, length = struct.unpack_from(f"{order}II", content)
    start, padding = 8, -length % 8
    if kind >> 16:  # the small form: length and type share a word, up to four bytes follow
        kind, length, start = kind & 0xFFFF, kind >> 16, 4
        padding = 4 - length
    if length > len(content) - start or padding < 0:
        raise _DamagedError("a variable ends in the middle")
    return kind, content[start : start + length], content[start + length + padding :]
