"""Read pickles safely (the only reader in vitp): containers, numbers, text and arrays of numbers, nothing else.

A pickle is a program for a small machine, whose commands call functions, set the state of objects and reserve memory.
Python's machine (in C) believes a file's word on each; even with a list of allowed names, numpy lets a pickle set the
flags of a dtype, and bytes of the file become pointers. Here the machine is the one written in Python, with the
commands that data needs. Each name that a file may ask for stands for a function below, so nothing of another library
is called; everything else is refused by its name. What the file makes of its bytes is counted against its size.
"""

from __future__ import annotations

import collections
import math
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from vitp_pipeline.errors import InputError

DEEPEST = 100
"""Containers in containers; mmengine's checkpoints have about ten."""

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
"""Codes of the dtypes that an array may have."""


class RefusedPickle(Exception):
    """A forbidden request of a pickle, as words that follow "its pickle asks for"."""


class NotNumbers(Exception):
    """The dtype of an array that does not hold numbers."""


class Ignored:
    """Placeholder for objects that no reader needs; accepts any request."""

    def __call__(self, *arguments: Any) -> Ignored:
        return self


class Dtype:
    """A dtype of numbers. Its state says the byte order, and nothing else."""

    def __init__(self, code: Any, *flags: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code not in _NUMBERS:
            raise NotNumbers(_NAMES_OF_OTHERS.get(str(code)[:1], str(code)[:20]))
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if any(part is not None for part in state[2:5]):
            raise NotNumbers("structures")
        if order not in ("<", ">", "|", "="):
            raise ValueError("no byte order")
        self.dtype = self.dtype.newbyteorder(order)


_NAMES_OF_OTHERS = {"O": "object", "U": "text", "S": "text", "V": "structures", "c": "complex numbers", "M": "dates"}


class Array:
    """An array of numbers, once its state has come."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.values = np.zeros(0)

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _from_bytes(content, dtype, shape, "F" if fortran else "C")


def _from_bytes(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """Make an array with its own memory, in native byte order and C order."""
    content = content.encode("latin1") if isinstance(content, str) else content  # text of Python 2
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes | bytearray):
        raise NotNumbers("object")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("no shape")
    kind = dtype.dtype
    if math.prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
    flat = np.frombuffer(content, np.uint8) != 0 if kind.kind == "b" else np.frombuffer(content, kind)
    return np.array(flat.reshape(shape, order="F" if order == "F" else "C"), kind.newbyteorder("="), order="C")


def _reconstruct(kind: Any, *empty: Any) -> Array:
    return Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    return _from_bytes(content, dtype, shape, order)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return _from_bytes(content, dtype, (), "C")[()]


def _no_bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes in pickles of protocol 2; other encodings can do more than that."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedPickle(f"the encoding {str(encoding)[:20]}")
    return text.encode("latin1")


class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle from a file, from where that stands.

    Args:
        file: opened for reading, in binary.
        size: bytes that the file has. What is made of them may take a few times as many.
        known: further functions of this program by the (module, name) that a file asks for.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]]
    stack: list[Any]
    read: Callable[[int], bytes]

    def __init__(self, file: IO[bytes], size: int, known: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(_Bounded(file, size), encoding="latin1")
        self.left = 8 * size + (1 << 20)
        self.known = {**_DATA, **(known or {})}

    def spend(self, number: int) -> None:
        """Count bytes. Raises RefusedPickle when they are more than the file can need."""
        self.left -= number
        if self.left < 0:
            raise RefusedPickle("more memory than its size")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            raise RefusedPickle(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickle("data outside of the file")

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(function):
            raise RefusedPickle("a call to something that is not a function")
        for given in arguments:  # each may be copied
            if isinstance(given, Sized):
                self.spend((1 if isinstance(given, bytes | str) else 8) * len(given))
        self.stack.append(function(*arguments))

    def _new_object(self) -> None:
        _, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Ignored):
            raise RefusedPickle("an object")
        self.stack.append(kind)

    def _build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Array):
            self.spend(len(state[-1]))
        if isinstance(built, Array | Dtype):
            built.set_state(state)
        elif not isinstance(built, Ignored | collections.OrderedDict):  # torch's have a note on versions
            raise RefusedPickle(f"the state of a {type(built).__name__}")

    def _refuse(self) -> None:
        raise RefusedPickle("an object")

    def _bytearray(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(count)))


_DATA: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Ignored(),
    ("numpy", "dtype"): Dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): dict,
    ("_codecs", "encode"): _encode,
}
for _builtins in ("builtins", "__builtin__"):
    _DATA |= {(_builtins, "set"): set, (_builtins, "frozenset"): frozenset, (_builtins, "bytes"): _no_bytes}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _DATA |= {(f"{_core}.multiarray", "_reconstruct"): _reconstruct, (f"{_core}.multiarray", "scalar"): _scalar}
    _DATA |= {(f"{_core}.numeric", "_frombuffer"): _frombuffer}

_COMMANDS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
    BINPERSID
"""
_OTHERS = "INST OBJ NEWOBJ_EX EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER"
SafeUnpickler.dispatch = {
    **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _COMMANDS.split())},
    pickle.REDUCE[0]: SafeUnpickler._reduce,
    pickle.NEWOBJ[0]: SafeUnpickler._new_object,
    pickle.BUILD[0]: SafeUnpickler._build,
    pickle.BYTEARRAY8[0]: SafeUnpickler._bytearray,
    **dict.fromkeys((getattr(pickle, name)[0] for name in _OTHERS.split()), SafeUnpickler._refuse),
}


class _Bounded:
    """A file that does not reserve memory for more than it has."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int) -> bytes:
        content = self._file.read(min(count, self._left))
        self._left -= len(content)
        return content

    def readline(self) -> bytes:
        content = self._file.readline(self._left)
        self._left -= len(content)
        return content


@contextmanager
def pickle_errors(path: Path, kind: str, hint: str) -> Iterator[None]:
    """Turn what reading raises into one line: InputError that says what was refused, or that the file is damaged.

    Args:
        kind: of the file. hint: what one who trusts it can do.
    """
    try:
        yield
    except NotNumbers as error:
        raise InputError(f"{path}: holds an array of {error}, not of numbers", "Save its weights alone") from error
    except RefusedPickle as error:
        reason = f"refused: its pickle asks for {error}, which is not data"
        raise InputError(f"{path}: {reason}", f"If you trust the file, {hint}") from error
    except Exception as error:  # a damaged file can make a reader raise anything
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputError(
            f"{path}: not a readable {kind} ({type(error).__name__}: {reason})",
            "Copy or download it again: it may be truncated, or another kind of file",
        ) from error


def finished(content: Any) -> Any:
    """Replace placeholders in the content by arrays. Lists and dicts are changed in place."""
    seen: dict[int, tuple[Any, Any]] = {}  # what stood there, kept alive, and what stands there now

    def walk(value: Any, depth: int) -> Any:
        if isinstance(value, Array):
            return value.values
        if not isinstance(value, dict | list | tuple):
            return value
        if id(value) in seen:
            return seen[id(value)][1]
        if depth > DEEPEST:
            raise RefusedPickle(f"more than {DEEPEST} containers in each other")
        seen[id(value)] = (value, value)
        if isinstance(value, dict):
            for key in value:
                value[key] = walk(value[key], depth + 1)
        elif isinstance(value, list):
            value[:] = [walk(item, depth + 1) for item in value]
        else:
            seen[id(value)] = (value, tuple(walk(item, depth + 1) for item in value))
        return seen[id(value)][1]

    return walk(content, 0)
