"""Archives that lie about what they hold are refused with one line, before they take memory or time."""

from __future__ import annotations

import io
import json
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.datasets import making
from tests.datasets.lying import lying_zip, patch
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.decoding.archives import MAX_BYTES, read_bytes
from vitp_pipeline.errors import InputError

MUCH = 60_000_000
NAME = "x.json"


def packed(path: Path, content: bytes = b"[1, 2]", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(NAME, content)
    return path


def encrypted(path: Path) -> None:
    packed(path)
    patch(path, b"PK\x01\x02", 8, "<H", 1)
    patch(path, b"PK\x03\x04", 6, "<H", 1)


def tar(path: Path, says: int) -> None:
    with tarfile.open(path, "w") as file:
        member = tarfile.TarInfo(NAME)
        member.size = 6
        file.addfile(member, io.BytesIO(b"[1, 2]"))
    content = bytearray(path.read_bytes())
    member.size = says
    content[:512] = member.tobuf()
    path.write_bytes(content)


def sparse_tar(path: Path) -> None:
    """GNU's header of a file with a hole of a terabyte."""
    tar(path, 6)
    content = bytearray(path.read_bytes())
    content[156:157] = b"S"
    content[386:410] = b"00000000000\0" + b"00000000006\0"
    content[483:495] = b"\x80" + (10**12).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "unpacks to more than it says": ("zip", lambda p: lying_zip(p, NAME, bytes(MUCH), 10), "damaged in its archive"),
    "more, by bzip2": ("zip", lambda p: lying_zip(p, NAME, bytes(MUCH), 10, zipfile.ZIP_BZIP2), "method"),
    "more, by LZMA": ("zip", lambda p: lying_zip(p, NAME, bytes(MUCH), 10, zipfile.ZIP_LZMA), "method"),
    "bzip2": ("zip", lambda p: packed(p, method=zipfile.ZIP_BZIP2), "compression method"),
    "unpacks to less": ("zip", lambda p: lying_zip(p, NAME, b"[1, 2]", 10**9), "to 1.0 GB"),
    "says gigabytes": ("zip", lambda p: lying_zip(p, NAME, b"[1, 2]", 2**32 - 2), "4.3 GB"),
    "unpacks a thousandfold": ("zip", lambda p: packed(p, bytes(300_000_000)), "0.3 MB would unpack to 0.3 GB"),
    "another checksum": ("zip", lambda p: (packed(p), patch(p, b"PK\x01\x02", 16, "<I", 7)), "damaged in its archive"),
    "local header elsewhere": ("zip", lambda p: (packed(p), patch(p, b"PK\x01\x02", 42, "<I", 9)), "damaged in its"),
    "newer version": ("zip", lambda p: (packed(p), patch(p, b"PK\x01\x02", 6, "<H", 999)), "a damaged archive"),
    "encrypted": ("zip", encrypted, "is encrypted"),
    "tar that says a terabyte": ("tar", lambda p: tar(p, 10**12), "1000.0 GB, more than|a damaged archive"),
    "tar that says a megabyte": ("tar", lambda p: tar(p, 10**6), "ends in the middle|a damaged archive"),
    "tar with a hole": ("tar", sparse_tar, "is not in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_without_taking_memory(tmp_path: Path, name: str) -> None:
    ending, make, words = REFUSED[name]
    archive = tmp_path / f"d.{ending}"
    make(archive)
    tracemalloc.start()
    try:
        with pytest.raises((InputError, FileNotFoundError), match=words) as found:
            read_bytes(archive / NAME)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert str(archive) in str(found.value) and str(found.value).isprintable()


def test_honest_archives_are_read(tmp_path: Path) -> None:
    rng = random.Random(0)
    for content in (b"", b"[1, 2]", bytes(3_000_000), rng.randbytes(2_500_000)):
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            archive = packed(tmp_path / f"{len(content)}-{method}-{content[:1].hex()}.zip", content, method)
            assert read_bytes(archive / NAME) == content
    with pytest.raises(InputError, match="more than 0"):
        read_bytes(archive / NAME, 1000)
    assert MAX_BYTES == 2**30


def test_an_encrypted_annotation_file_is_one_line(tmp_path: Path) -> None:
    spec, data = making.write_coco(tmp_path)
    text = json.dumps(data).encode()
    (tmp_path / "annotations/panoptic_val.json").unlink()
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as file:
        file.writestr("annotations/panoptic_val.json", text)
    assert len(Dataset(spec, tmp_path, "val")) == 4
    patch(tmp_path / "annotations.zip", b"PK\x01\x02", 8, "<H", 1)
    with pytest.raises(InputError, match=r"panoptic_val\.json: is encrypted"):
        Dataset(spec, tmp_path, "val")


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_any_damaged_archive_is_read_or_refused(tmp_path: Path, ending: str) -> None:
    rng, good = random.Random(1), tmp_path / f"good.{ending}"
    packed(good) if ending == "zip" else tar(good, 6)
    content = good.read_bytes()
    for number in range(150):
        spoiled = bytearray(content)
        for _ in range(rng.choice([1, 2, 9])):
            spoiled[rng.randrange(min(len(spoiled), 700))] = rng.randrange(256)
        archive = tmp_path / f"{number}.{ending}"
        archive.write_bytes(spoiled[: rng.choice([len(spoiled), rng.randrange(len(spoiled))])])
        try:
            assert len(read_bytes(archive / NAME)) < 10_000
        except (InputError, FileNotFoundError) as error:
            assert str(archive) in str(error)
