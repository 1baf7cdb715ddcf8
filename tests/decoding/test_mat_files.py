"""MATLAB files as scipy writes them, and damaged and hostile ones: numbers, or one line that names the file."""

from __future__ import annotations

import random
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from vitp_pipeline.decoding import mat_files
from vitp_pipeline.decoding.mat_files import read_mat_array
from vitp_pipeline.errors import InputError

DTYPES = ("uint8", "int16", "int32", "uint64", "float32", "float64", "bool")


def saved(path: Path, compress: bool = True, **variables: Any) -> Path:
    savemat(path, variables, do_compression=compress)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (1, 3), (2, 3, 4), (0, 3), (300, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_those_that_were_saved(tmp_path: Path, dtype: str, shape: tuple[int, ...], compress: bool) -> None:
    """Beside variables of other kinds. scipy's own reader gives the same."""
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    others: dict[str, Any] = {"a": "text", "z": {"k": [1, 2]}, "o": np.array([["x", 1]], object)}
    path = saved(tmp_path / "a.mat", compress, **others, v=array, more=array + array)
    found = read_mat_array(path, "v")
    assert np.array_equal(found, array) and found.dtype == ("uint8" if dtype == "bool" else dtype)
    theirs = loadmat(path, variable_names=["v"])["v"]
    assert np.array_equal(found, theirs) and found.shape == theirs.shape


KINDS: dict[str, Any] = {
    "cell": np.array([[1, "x"]], object),
    "struct": {"a": 1},
    "text": "text",
    "sparse": csc_array(np.eye(3)),
    "complex": np.full((2, 2), 1j),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_variables_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"a\.mat: the variable 'v' is not an array of real numbers"):
        read_mat_array(saved(tmp_path / "a.mat", v=KINDS[kind]), "v")


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind: int, rows: int, cols: int, numbers: bytes, stored: int = 2) -> bytes:
    """A variable `v` of MATLAB's class number `kind`, by the words of the format."""
    flags, sizes = struct.pack("<II", kind, 0), struct.pack("<ii", rows, cols)
    return element(14, element(6, flags) + element(5, sizes) + element(1, b"v") + element(stored, numbers))


HEADER = b"x".ljust(116) + bytes(8) + b"\0\1IM"
FOUR = matrix(9, 2, 2, bytes([1, 2, 3, 4]))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "version 5"),
    "text": (b"x" * 1000, "version 5"),
    "version 4": (struct.pack("<5i", 0, 2, 2, 0, 2) + b"v\0" + bytes(32), "version 5"),
    "version 7.3": (HEADER[:124] + b"\0\2IM" + b"\x89HDF", "version 5"),
    "no variable": (HEADER, "no variables 'v'"),
    "twice": (HEADER + FOUR + FOUR, "2 variables 'v'"),
    "more numbers claimed than there are": (HEADER + matrix(9, 2**30, 2**30, bytes(4)), "do not fill its shape"),
    "fewer": (HEADER + matrix(9, 1, 2, bytes(4)), "do not fill its shape"),
    "sizes below 0": (HEADER + matrix(9, -2, -2, bytes(4)), "do not fill its shape"),
    "an object": (HEADER + matrix(3, 2, 2, bytes(4)), "not an array of real numbers"),
    "a function": (HEADER + matrix(16, 2, 2, bytes(4)), "not an array of real numbers"),
    "an opaque object": (HEADER + matrix(17, 2, 2, bytes(4)), "no variables 'v'"),
    "a class that does not exist": (HEADER + matrix(99, 2, 2, bytes(4)), "not an array of real numbers"),
    "a type that does not exist": (HEADER + matrix(9, 2, 2, bytes(4), 99), "numbers of type 99"),
    "a variable longer than the file": (HEADER + struct.pack("<II", 14, 2**32 - 8) + FOUR[8:], "ends in the middle"),
    "numbers longer than the file": (HEADER + element(14, FOUR[8:-16] + struct.pack("<II", 2, 2**32 - 8)), "ends in"),
    "a small element of five bytes": (HEADER + element(14, FOUR[8:-16] + struct.pack("<II", 5 << 16 | 2, 0)), "ends"),
    "no shape": (HEADER + element(14, element(6, struct.pack("<II", 9, 0)) + element(5, b"")), "no shape"),
    "not compressed, though it says so": (HEADER + element(15, b"12345678"), "is damaged"),
    "compressed twice": (HEADER + element(15, zlib.compress(element(15, zlib.compress(FOUR)))), "no variables 'v'"),
}


def test_the_variable_made_by_hand_is_read(tmp_path: Path) -> None:
    """So that the hostile ones fail for what is wrong with them."""
    (tmp_path / "a.mat").write_bytes(HEADER + FOUR)
    assert read_mat_array(tmp_path / "a.mat", "v").tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    (tmp_path / "a.mat").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words) as error:
        read_mat_array(tmp_path / "a.mat", "v")
    assert "a.mat" in str(error.value) and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # 256 MiB, in KiB


def test_a_file_that_unpacks_to_much_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat_files, "LARGEST", 50_000)
    path = saved(tmp_path / "a.mat", v=np.zeros((100, 1000), np.uint8))
    assert path.stat().st_size < 1000
    with pytest.raises(InputError, match=r"a\.mat: .*its variables unpack to more"):
        read_mat_array(path, "v")
    monkeypatch.setattr(mat_files, "LARGEST", 200_000)
    assert read_mat_array(path, "v").shape == (100, 1000)
    with pytest.raises(InputError, match="more than"):
        read_mat_array(saved(tmp_path / "a.mat", False, v=np.zeros((1000, 1000), np.uint8)), "v")


@pytest.mark.parametrize("compress", [False, True])
def test_damaged_files(tmp_path: Path, compress: bool) -> None:
    """Cut off anywhere, or with bytes changed: an array, or one line."""
    good = saved(tmp_path / "a.mat", compress, v=np.arange(48, dtype=np.int16).reshape(6, 8), w="x").read_bytes()
    chance = random.Random(0)
    cut = [good[:n] for n in range(0, len(good), 3)]
    changed = []
    for _ in range(400):
        content = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 8))):
            content[chance.randrange(116, len(content))] = chance.choice((0, 1, 255, chance.randrange(256)))
        changed.append(bytes(content))
    refused = 0
    for content in cut + changed:
        (tmp_path / "b.mat").write_bytes(content)
        try:
            assert read_mat_array(tmp_path / "b.mat", "v").dtype.kind in "iuf"
        except InputError as error:
            refused += 1
            assert "b.mat" in str(error) and "\n" not in str(error)
    assert refused > len(cut) // 2


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mat: no such file"):
        read_mat_array(tmp_path / "a.mat", "v")


def test_the_other_byte_order(tmp_path: Path) -> None:
    """Files of big-endian machines."""

    def big(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    inside = big(6, struct.pack(">II", 11, 0)) + big(5, struct.pack(">ii", 1, 2)) + big(1, b"v")
    numbers = big(4, struct.pack(">HH", 1, 258))
    (tmp_path / "a.mat").write_bytes(HEADER[:124] + b"\1\0MI" + big(14, inside + numbers))
    assert read_mat_array(tmp_path / "a.mat", "v").tolist() == [[1, 258]]
