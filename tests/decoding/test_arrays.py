"""Arrays of foreign .npz files: as numpy reads them, or refused before they take memory."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as strategies

from tests.datasets.lying import lying_zip, patch
from vitp_pipeline.decoding import arrays
from vitp_pipeline.decoding.arrays import ArrayFile
from vitp_pipeline.errors import InputError


def npy(descr: str, shape: Any, content: bytes = b"", fortran: bool = False, version: bytes = b"\1\0") -> bytes:
    """A .npy file with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + content


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def objects(path: Path) -> None:
    np.savez(path, x=np.array([Evil()], object))


MUCH = 60_000_000
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "no such file"),
    "folder": (Path.mkdir, "directory|not a file"),
    "text": (lambda p: p.write_text("no"), "cannot be read"),
    "npy": (lambda p: p.write_bytes(npy("'<f4'", "(1,)", bytes(4))), "cannot be read"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps(Evil())), "cannot be read"),
    "objects": (objects, "is of .*object.*, not of numbers"),
    "text array": (lambda p: np.savez(p, x=np.array(["a"])), "not of numbers"),
    "complex": (lambda p: np.savez(p, x=np.array([1j])), "not of numbers"),
    "dates": (lambda p: np.savez(p, x=np.array(["2020"], "M8[D]")), "not of numbers"),
    "fields": (lambda p: np.savez(p, x=np.zeros(2, [("a", "f4")])), "not of numbers"),
    "long reals": (lambda p: zipped(p, {"x.npy": npy("'<f16'", "(1,)", bytes(16))}), "not of numbers"),
    "no header": (lambda p: zipped(p, {"x.npy": b"12345"}), "no header of numpy's"),
    "empty member": (lambda p: zipped(p, {"x.npy": b""}), "no header"),
    "version 9": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "(1,)", bytes(4), version=b"\x09\0")}), "no header"),
    "code": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "(__import__('os').getpid(),)", bytes(4))}), "no header"),
    "deep": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "(" * 3000, bytes(4))}), "no header"),
    "long header": (
        lambda p: zipped(p, {"x.npy": b"\x93NUMPY\2\0" + struct.pack("<I", MUCH) + bytes(MUCH)}),
        "no head",
    ),
    "no tuple": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "7", bytes(28))}), "no header"),
    "negative": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "(-1, -7)", bytes(28))}), "says it is"),
    "too short": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "(8,)", bytes(28))}), "holds 28 bytes"),
    "too long": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "(6,)", bytes(28))}), "holds 28 bytes"),
    "petabytes": (lambda p: zipped(p, {"x.npy": npy("'<f8'", "(1000000000, 1000000)", b"")}), "holds 0"),
    "shape of 10^30": (lambda p: zipped(p, {"x.npy": npy("'<f8'", f"({10**30},)", b"")}), "holds 0 bytes"),
    "unpacks to more": (lambda p: lying_zip(p, "x.npy", npy("'|u1'", "(9,)", bytes(MUCH)), 137), "CRC|no header|says"),
    "twice": (lambda p: twice(p), "two arrays of one name"),
    "bzip2": (lambda p: zipped(p, {"x.npy": npy("'<f4'", "(1,)", bytes(4))}, zipfile.ZIP_BZIP2), "compression method"),
    "encrypted": (lambda p: (np.savez(p, x=np.zeros(3)), patch(p, b"PK\x01\x02", 8, "<H", 1)), "encrypted"),
    "checksum": (lambda p: (np.savez(p, x=np.zeros(3)), patch(p, b"PK\x01\x02", 16, "<I", 1)), "CRC"),
    "too large": (lambda p: np.savez_compressed(p, x=np.zeros(MUCH, bool)), "more than"),
}


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning):
        for _ in range(2):
            file.writestr("x.npy", npy("'<f4'", "(1,)", bytes(4)))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_without_taking_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make, words = REFUSED[name]
    path = tmp_path / "x.npz"
    make(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arrays, "LARGEST", 10_000_000)
    tracemalloc.start()
    try:
        with pytest.raises((InputError, OSError), match=words) as found, ArrayFile(path) as file:
            file.read("x")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(found.value) and "\n" not in str(found.value) and len(str(found.value)) < 400
    assert not (tmp_path / "ran").exists()


kinds = st.sampled_from(["?", "i1", "u1", "<i4", ">i4", "<u8", "<f2", ">f4", "<f8"])
any_array = kinds.flatmap(
    lambda kind: strategies.arrays(
        np.dtype(kind), strategies.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_array, st.booleans(), st.booleans())
def test_arrays_are_those_of_numpy(tmp_path: Path, array: np.ndarray, fortran: bool, packed: bool) -> None:
    path = tmp_path / "x.npz"
    (np.savez_compressed if packed else np.savez)(path, x=np.asfortranarray(array) if fortran else array, y=np.zeros(2))
    with np.load(path) as expected, ArrayFile(path) as file:
        assert file.names == ("x", "y")
        found = file.read("x")
        assert found.dtype == expected["x"].dtype and found.shape == expected["x"].shape == file.header("x").shape
        assert found.tobytes() == expected["x"].tobytes()
        if array.ndim and array.size:
            planes = list(file.planes("x"))
            assert len(planes) == len(array) and np.stack(planes).astype(array.dtype).tobytes() == array.tobytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_array, st.booleans())
def test_an_npy_file_is_one_array(tmp_path: Path, array: np.ndarray, fortran: bool) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.asfortranarray(array) if fortran else array)
    expected = np.load(path)
    with ArrayFile(path) as file:
        (name,) = file.names
        found = file.read(name)
        assert found.dtype == expected.dtype and found.shape == expected.shape == file.header(name).shape
        assert found.tobytes() == expected.tobytes()
        if array.ndim and array.size:
            assert np.stack(list(file.planes(name))).astype(array.dtype).tobytes() == array.tobytes()


ODD_NPY: dict[str, tuple[bytes, str]] = {
    "text": (b"no", "no header of numpy's"),
    "empty": (b"", "no header of numpy's"),
    "pickle": (pickle.dumps(Evil()), "no header of numpy's"),
    "objects": (npy("'|O'", "(1,)", pickle.dumps(Evil())), "not of numbers"),
    "too short": (npy("'<f4'", "(8,)", bytes(28)), "holds 28 bytes"),
    "petabytes": (npy("'<f8'", "(1000000000, 1000000)"), "holds 0"),
}


@pytest.mark.parametrize("name", ODD_NPY)
def test_an_odd_npy_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content, words = ODD_NPY[name]
    (tmp_path / "x.npy").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as found, ArrayFile(tmp_path / "x.npy") as file:
        file.read("")
    assert str(found.value).startswith(f"{tmp_path / 'x.npy'}: ") and not (tmp_path / "ran").exists()


def test_any_damaged_file_is_read_or_refused(tmp_path: Path) -> None:
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    np.savez_compressed(buffer, x=rng.integers(0, 2, (4, 5, 6)).astype(bool))
    content, path = buffer.getvalue(), tmp_path / "x.npz"
    for number in range(300):
        spoiled = bytearray(content)
        for at in rng.integers(0, len(content), rng.choice([1, 2, 9])):
            spoiled[at] = int(rng.integers(256))
        path.write_bytes(spoiled[: len(spoiled) if number % 3 else int(rng.integers(len(spoiled)))])
        try:
            with ArrayFile(path) as file:
                for name in file.names:
                    file.read(name)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
