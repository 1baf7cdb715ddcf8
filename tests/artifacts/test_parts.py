from __future__ import annotations

import ast
import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
import zarr

import vitp_pipeline
from tests.disks import disk_of
from tests.local_runs import write_index
from vitp_pipeline.artifacts.parts import RUN, ArrayReader, ArrayWriter, Planes, _by_zarr, _encode, read_index
from vitp_pipeline.artifacts.quantized_array import kind_of
from vitp_pipeline.errors import CorruptError, StorageError
from vitp_pipeline.storage.layout import arrays_path, index_path
from vitp_pipeline.storage.run_store import LocalStore


def some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "masks/000139": rng.normal(size=(3, 5, 4)).astype(np.float16),
        "masks/a b.ü": rng.normal(size=(2, 9, 7)).astype(np.float32),
        "masks/none": np.zeros((0, 9, 7), np.float16),
        "class_logits/000139": np.array([[1.0, np.inf, -np.inf, np.nan]], np.float32),
        "counts/x": rng.integers(-9, 9, (4,)).astype(np.int64),
        "flags/x": np.array([[True, False]]),
        "top": np.zeros((1, 1), np.uint8),
    }


def write_part(path: Path, arrays: dict[str, np.ndarray], **options) -> None:
    writer = ArrayWriter(path, {"fingerprint": "f" * 64, "part": 0})
    for name, values in arrays.items():
        writer.add(name, values, ["axis", "y", "x"][: values.ndim], **options)
    writer.close()


@pytest.mark.parametrize("held", [0, 2**24])
@pytest.mark.parametrize("count", [0, 1, 2, 12])
@pytest.mark.parametrize(
    ("dtype", "step"), [("float32", 0.0), ("float16", 0.0), ("float32", 1 / 128), ("float32", 2**-14)]
)
def test_planes_are_stored_as_the_whole_array_would_be(tmp_path, monkeypatch, held: int, count: int, dtype: str, step):
    """Above a size each is a chunk, so that one is held at a time; every reader gets the same array."""
    monkeypatch.setattr("vitp_pipeline.artifacts.parts.HELD", held)
    rng = np.random.default_rng(0)
    values = (rng.integers(-64, 64, (count, 9, 7)) * (step or 1)).astype(dtype)
    for name in ("a", "b"):
        writer = ArrayWriter(tmp_path / f"{name}.zarr.zip", {})
        planes = Planes((count, 9, 7), np.dtype(dtype), 64.0 * (step or 1), iter(values))
        writer.add("masks/x", planes, ["kept", "y", "x"], step=step)
        writer.close()
    with ArrayReader(tmp_path / "a.zarr.zip") as reader:
        found = reader.read("masks/x")
    assert found.dtype == values.dtype and np.array_equal(found, values)
    array = zarr.open_array(zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="r"), path="masks/x", mode="r")
    assert np.array_equal(array[...], values) and array.metadata.dimension_names == ("kept", "y", "x")
    assert array.chunks == ((1, 9, 7) if count and not held else (max(1, count), 9, 7))
    assert (tmp_path / "a.zarr.zip").read_bytes() == (tmp_path / "b.zarr.zip").read_bytes()


@pytest.mark.parametrize("chunks", [None, (1, 4, 4)])
def test_round_trip(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    path, arrays = tmp_path / "s/part-0000.zarr.zip", some_arrays()
    for name in ("masks/000139", "masks/a b.ü"):
        if chunks:
            write_part(path, {name: arrays[name]}, chunks=chunks)
            with ArrayReader(path) as reader:
                assert np.array_equal(reader.read(name), arrays[name])
    write_part(path, arrays)
    with ArrayReader(path) as reader:
        for name, values in arrays.items():
            found = reader.read(name)
            assert found.dtype == values.dtype and found.shape == values.shape
            assert np.array_equal(found, values, equal_nan=values.dtype.kind == "f")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("step", [0.0, 1.0, 1 / 256])
@pytest.mark.parametrize("shape", [(7, 40, 60), (1, 1, 1), (12,), (3, 5)])
def test_one_chunk_has_the_bytes_that_zarr_itself_writes(shape: tuple[int, ...], step: float) -> None:
    rng, dimensions = np.random.default_rng(0), ["axis", "y", "x"][: len(shape)]
    for kind, largest in (("f4", 300), ("f4", 2**20), *(() if step else (("f2", 9), ("i8", 9), ("u1", 9)))):
        values = rng.integers(-largest if kind != "u1" else 0, largest, shape).astype(kind)
        integers = kind_of(values, step) if step else None
        by_zarr = _by_zarr(values, dimensions, shape, step, integers)
        assert _encode(values, dimensions, shape, step) == by_zarr
        assert _encode(np.asfortranarray(values), dimensions, shape, step) == by_zarr


def test_the_same_content_has_the_same_bytes_whenever_it_is_written(tmp_path: Path) -> None:
    write_part(tmp_path / "a.zarr.zip", some_arrays())
    time.sleep(2.1)  # zip dates have a resolution of 2 s
    write_part(tmp_path / "b.zarr.zip", some_arrays())
    assert (tmp_path / "a.zarr.zip").read_bytes() == (tmp_path / "b.zarr.zip").read_bytes()


def test_readable_with_nothing_of_ours(tmp_path: Path) -> None:
    path, arrays = tmp_path / "part-0000.zarr.zip", some_arrays()
    write_part(path, arrays)
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert group.attrs["vitp"]["part"] == 0
    assert set(group["masks"].array_keys()) == {"000139", "a b.ü", "none"}
    for name, values in arrays.items():
        array = group[name]
        assert list(array.metadata.dimension_names) == ["axis", "y", "x"][: values.ndim]
        assert np.array_equal(array[...], values, equal_nan=values.dtype.kind == "f")
    assert zipfile.ZipFile(path).testzip() is None


def test_nothing_appears_before_close_and_abandon_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "part-0000.zarr.zip"
    writer = ArrayWriter(path, {})
    writer.add("a/b", np.ones((9, 9)), ["y", "x"])
    assert not path.exists()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def outcome_of(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """ "corrupt", or "same"; anything else is a failure of the test."""
    try:
        with ArrayReader(path) as reader:
            for name, values in arrays.items():
                found = reader.read(name)
                assert found.dtype == values.dtype and found.shape == values.shape, name
                assert np.array_equal(found, values, equal_nan=values.dtype.kind == "f"), name
    except CorruptError as error:
        assert str(path) in str(error) and "--repair" in str(error) and "\n" not in str(error)
        return "corrupt"
    return "same"


def test_a_flipped_byte_of_the_arrays_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "part-0000.zarr.zip"
    arrays = {k: v for k, v in some_arrays().items() if k in ("masks/000139", "class_logits/000139")}
    write_part(path, arrays)
    good, rng = path.read_bytes(), np.random.default_rng(1)
    directory = good.index(b"PK\x01\x02")
    positions = [
        *rng.integers(0, directory, 150),  # entries
        *rng.integers(directory, len(good), 250),  # the zip's directory, which has no checksum of its own
    ]
    outcomes = []
    for at in positions:
        bad = bytearray(good)
        bad[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        outcomes.append(outcome_of(path, arrays))
    assert outcomes.count("corrupt") > len(outcomes) / 2  # the rest are dates and the like


def test_truncated_or_missing_arrays(tmp_path: Path) -> None:
    path, arrays = tmp_path / "part-0000.zarr.zip", some_arrays()
    write_part(path, arrays)
    good = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.99):
        path.write_bytes(good[: int(len(good) * share)])
        assert outcome_of(path, arrays) == "corrupt"
    path.unlink()
    assert outcome_of(path, arrays) == "corrupt"


@pytest.mark.parametrize("lost", ["masks/000139/zarr.json", "masks/000139/c/1/0/0"])
def test_a_missing_entry_is_found(tmp_path: Path, lost: str) -> None:
    path, arrays = tmp_path / "part-0000.zarr.zip", {"masks/000139": some_arrays()["masks/000139"]}
    write_part(path, arrays, chunks=(1, 5, 4))
    with zipfile.ZipFile(path) as file:
        entries = {n: file.read(n) for n in file.namelist()}
    assert lost in entries
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            if name != lost:
                file.writestr(name, content)
    assert outcome_of(path, arrays) == "corrupt"
    with ArrayReader(path) as reader, pytest.raises(CorruptError, match="array nothing"):
        reader.read("nothing")


# ---- the index ------------------------------------------------------------------------------------------------------


def some_table(rows: int = 40) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "image_id": [f"i{n}" for n in range(rows)],
            "status": ["ok"] * rows,
            "points": [rng.integers(0, 9, (3, 2)).tolist() for _ in range(rows)],
            "mass": rng.random(rows),
        }
    ).replace_schema_metadata({"vitp": json.dumps({"fingerprint": "f"})})


FORGED: list[dict[str, Any]] = [
    *({"codecs": [{"name": "bytes"}, {"name": name}]} for name in ("gzip", "zstd", "numcodecs.lzma", "numcodecs.bz2")),
    {"codecs": [{"name": "numcodecs.pickle"}, {"name": "bytes"}]},
    {"codecs": [{"name": "vlen-utf8"}], "data_type": "string"},
    {"codecs": [{"name": "sharding_indexed", "configuration": {}}]},
    {"codecs": [{"name": "os.system"}]},
    {"codecs": []},
    {"codecs": None},
    {"zarr_format": 2},
    {"zarr_format": 2, "filters": [{"id": "pickle"}], "dtype": "|O"},
    *({"shape": shape} for shape in ([10**12], [10**6, 10**6], [-1], ["9"], [2**70], [4, 10**9, 4])),
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**12]}}},
    *({"data_type": kind} for kind in ("object", "str", "S9", "datetime64[s]", "complex64", "nonsense", {"name": "x"})),
]


@pytest.mark.parametrize("forged", FORGED, ids=str)
@pytest.mark.parametrize("further", [False, True], ids=["one chunk", "by zarr"])
def test_an_array_that_was_not_written_here_is_not_decoded(
    forged: dict[str, Any], further: bool, tmp_path: Path
) -> None:
    """A run directory comes from anywhere: neither codecs that it names nor sizes that it claims are believed."""
    writer = ArrayWriter(tmp_path / "a.zip", {"x": 1})
    writer.add("g/one", np.arange(6, dtype="f4").reshape(2, 3), ("a", "b"))
    writer.close()
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with zipfile.ZipFile(tmp_path / "a.zip") as good, zipfile.ZipFile(tmp_path / "b.zip", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name == "g/one/zarr.json":
                content = json.dumps({**json.loads(content), **forged}).encode()
            bad.writestr(name, content)
        if further:
            bad.writestr("g/one/c/9/9", b"more")
    with pytest.raises(CorruptError, match=r"b\.zip.*damaged"), ArrayReader(tmp_path / "b.zip") as reader:
        reader.read("g/one")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 200 << 10


def test_index_round_trip_by_ours_and_by_pyarrow(tmp_path: Path) -> None:
    for part in range(3):
        write_index(index_path(tmp_path, part), some_table().slice(10 * part, 10))
        found = read_index(index_path(tmp_path, part))
        assert found.to_pylist() == some_table().slice(10 * part, 10).to_pylist()
        assert json.loads(found.schema.metadata[b"vitp"]) == {"fingerprint": "f"}
    assert read_index(index_path(tmp_path, 1), ["status"]).column_names == ["status"]
    found = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table()
    assert found["image_id"].to_pylist() == [f"i{n}" for n in range(30)]
    one = pyarrow.dataset.dataset(index_path(tmp_path, 0))
    assert (
        one.to_table(filter=pyarrow.dataset.field("image_id") == "i3")["mass"][0].as_py()
        == some_table()["mass"][3].as_py()
    )


def test_index_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_index(tmp_path / folder / "a.parquet", some_table())
    assert (tmp_path / "a/a.parquet").read_bytes() == (tmp_path / "b/a.parquet").read_bytes()


def test_a_flipped_byte_of_the_index_is_found_or_harmless(tmp_path: Path) -> None:
    path = index_path(tmp_path, 0)
    write_index(path, some_table())
    table = read_index(path)
    good, rng = path.read_bytes(), np.random.default_rng(2)
    found = 0
    for at in rng.integers(0, len(good), 1000):
        bad = bytearray(good)
        bad[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        try:
            assert read_index(path).equals(table, check_metadata=True)
        except CorruptError as error:
            found += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert found > 950
    path.write_bytes(good[:-100])
    with pytest.raises(CorruptError):
        read_index(path)
    path.unlink()
    with pytest.raises(CorruptError):
        read_index(path)


def test_an_index_without_a_checksum_is_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(some_table(), tmp_path / "x.parquet")
    with pytest.raises(CorruptError, match="no checksum"):
        read_index(tmp_path / "x.parquet")


def test_an_index_is_read_at_its_own_place_and_by_its_own_plan_alone(tmp_path: Path) -> None:
    shards = tmp_path / "run/proposals/shards"
    path = index_path(shards / "00000", 0)
    write_index(path, some_table().replace_schema_metadata({RUN: b"a" * 64}))
    assert read_index(path, run="a" * 64).num_rows == read_index(path).num_rows
    with pytest.raises(CorruptError, match=r"was made for another run\.json"):
        read_index(path, run="b" * 64)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    read_index(index_path(tmp_path / "moved/proposals/shards/00000", 0))
    for other in (index_path(shards / "00000", 1), index_path(shards / "00001", 0), shards / "00000/_totals.parquet"):
        other.parent.mkdir(exist_ok=True)
        shutil.copy(path, other)
        with pytest.raises(CorruptError, match=r"is the file of proposals/shards/00000/part-0000\.parquet"):
            read_index(other)


def test_names_of_parts(tmp_path: Path) -> None:
    assert index_path(tmp_path, 3) == tmp_path / "part-0003.parquet"
    assert arrays_path(tmp_path, 12345, "9f86d081884c7d65") == tmp_path / "part-12345-9f86d081884c.zarr.zip"


# ---- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of("64k", tmp_path / "disk") as folder:
        yield folder


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file()]


def test_full_disk_while_arrays_are_added(small_disk: Path) -> None:
    writer, rng = ArrayWriter(small_disk / "s/part-0000.zarr.zip", {}), np.random.default_rng(0)
    with pytest.raises(StorageError, match="disk is full") as info:
        for n in range(40):
            writer.add(f"masks/{n}", rng.random((16, 16, 8)), ["q", "y", "x"])
        writer.close()
    assert "part-0000.zarr.zip" in str(info.value)
    writer.abandon()
    del writer
    assert leftovers(small_disk) == []
    write_part(small_disk / "s/part-0000.zarr.zip", {"a": np.ones((3, 3))})  # after making room it goes on


def test_full_disk_when_the_directory_of_the_zip_is_written(small_disk: Path) -> None:
    path = small_disk / "part-0000.zarr.zip"
    writer = ArrayWriter(path, {})
    for n in range(30):
        writer.add(f"masks/{n}", np.arange(64.0), ["q"])
    writer._zip.fp.flush()  # type: ignore[union-attr]
    with (small_disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(StorageError, match="disk is full"):
        writer.close()
    writer.abandon()
    assert leftovers(small_disk) == ["ballast"]


def test_full_disk_for_the_index_the_classifier_and_the_checkpoint(small_disk: Path) -> None:
    import torch

    from tests.classifier.making import tiny_model
    from vitp_pipeline.classifier.weights import save_classifier

    write_index(small_disk / "a.parquet", some_table(3))
    with pytest.raises(StorageError, match=r"b.parquet: the disk is full"):
        write_index(small_disk / "b.parquet", pa.table({"x": np.random.default_rng(0).random(20_000)}))
    with pytest.raises(StorageError, match=r"model.safetensors: the disk is full"):
        save_classifier(tiny_model(), small_disk / "model.safetensors", {})
    assert leftovers(small_disk) == ["a.parquet"]

    from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
    from vitp_pipeline.classifier.training.loop import Trainer
    from vitp_pipeline.config.settings import TrainSettings

    model = tiny_model()
    batches = type("Batches", (), {"skipped": {}})()
    folder = TrainingFolder(LocalStore(small_disk), small_disk)
    trainer = Trainer(model, batches, TrainSettings(), folder, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(StorageError, match=r"checkpoint.pt: the disk is full"):
        trainer._save(1, [], optimizer, torch.amp.GradScaler("cpu", enabled=False))
    assert leftovers(small_disk) == ["a.parquet"]


READS = """
import os, sys
import pyarrow, pyarrow.parquet
from pathlib import Path
from vitp_pipeline.artifacts.image_ids import TextColumn
from vitp_pipeline.artifacts.parts import read_index
from vitp_pipeline.datasets.image_table import ids_of
before = len(os.listdir("/proc/self/task"))
rows = read_index(Path(sys.argv[1]))
ids = TextColumn(rows["column 0"].cast("string"))
ids.digest, ids.first_twice(), ids.place("7"), list(ids_of(ids))
rows = pyarrow.concat_tables([rows.filter([True] * len(rows)).take([1, 0]), rows]).combine_chunks()
sys.exit(len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_starts_no_thread_of_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may still hold the bytes when the interpreter ends, which aborts the process, once in a while."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    write_index(tmp_path / "part-0000.parquet", pa.table({f"column {n}": list(range(50)) for n in range(20)}))
    assert subprocess.run([sys.executable, "-c", READS, str(tmp_path / "part-0000.parquet")]).returncode == 0


def test_parquet_is_read_in_one_place() -> None:
    package = Path(vitp_pipeline.__file__).parent
    readers = re.compile(r"pyarrow\.(dataset|csv|acero)|pq\.(read|Parquet)|use_threads=True")
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if _code(readers, path)}
    assert found == {"artifacts/parts.py", "artifacts/partial_part.py"}  # which reads a schema, no column
    computing = {path.stem for path in package.rglob("*.py") if _code(re.compile(r"pyarrow\.(compute|parquet)"), path)}
    assert computing == {"parts", "partial_part", "image_ids", "image_table"}  # the test above runs what they compute


def _code(pattern: re.Pattern[str], path: Path) -> bool:
    """Whether a module's code, not its comments and strings, has the pattern."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute))
    return any(pattern.search(ast.unparse(node)) for node in nodes)
