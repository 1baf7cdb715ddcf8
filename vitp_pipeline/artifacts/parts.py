"""A part: the results of up to a thousand images or so, committed together.

    part-0003-9f86d081884c.zarr.zip   arrays, in a Zarr v3 group inside one zip file (one inode; entries carry CRCs)
    part-0003.parquet                 one row per image; its appearance commits the part

The index is sealed: it holds its own SHA-256, its place in the run, the digest of the arrays and that of the run's plan
(`StageRun.digest`). Reading an index checks all of it; reading an array checks the CRC of every byte read and that the
arrays are those of this part; the SHA-256 needs the whole file, so only `vitp verify` computes it.
Both are readable without vitp: `zarr.open(zarr.storage.ZipStore(path))` and `pyarrow.dataset`.
The bytes depend only on the content and its place: entries have a fixed date and a fixed order.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.array_metadata import check_metadata, decode_plain, decode_plane, has_planes, is_plain
from vitp_pipeline.artifacts.quantized_array import codecs, decode, encode, kind_of, wrote
from vitp_pipeline.errors import CorruptError, InputError, UserError
from vitp_pipeline.storage.atomic_files import refusals, write_whole
from vitp_pipeline.storage.fs_ops import make_folder, new_file, remove
from vitp_pipeline.storage.layout import open_plain, place
from vitp_pipeline.storage.sealed import damaged, require_place
from vitp_pipeline.storage.temporaries import temporary

if TYPE_CHECKING:
    import pyarrow as pa

_EPOCH = (1980, 1, 1, 0, 0, 0)
_KEY = re.compile(r"(.*)/(?:zarr\.json|c(?:/[0-9]+)*)", re.DOTALL)
"""Of a Zarr store: an array's (or group's) name, then its metadata or one of its chunks."""
_BLOSC: dict[str, Any] = {"cname": "zstd", "clevel": 3}


def array_of(key: str) -> str | None:
    """Return the array, or group, that an entry of a part's zip belongs to."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


@dataclass(frozen=True)
class Planes:
    """A (P, height, width) array that is made plane by plane while it is written, so that one plane is held.

    Attributes:
        largest: no value is farther from 0.
        each: its P planes, (height, width) of `dtype`.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    largest: float
    each: Iterable[np.ndarray]

    @property
    def few(self) -> bool:
        """Tell if the array is small enough to be held, and stored as one chunk."""
        return math.prod(self.shape) <= HELD


HELD = 2**24
"""Numbers of an array that is held whole."""


class ArrayWriter:
    """Appends named arrays to a part's zip as they come, so that one image at a time is in memory.

    Args:
        path: the zip file; it appears only when `close()` has run, and is not yet sent to a store.
        attributes: JSON attributes of the root group, under the key "vitp".
    Raises:
        StorageError: disk full or similar, from any method.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self._temporary = temporary(path)
        with refusals(path):
            make_folder(path.parent)
            self._file = new_file(self._temporary)
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._groups: set[str] = set()
        self._names: set[str] = set()
        try:
            self._group("", {"vitp": attributes})
        except BaseException:  # there is no writer yet that could be told to abandon it
            self.abandon()
            raise

    def add(
        self,
        name: str,
        values: np.ndarray | Planes,
        dimensions: Sequence[str],
        chunks: Sequence[int] | None = None,
        step: float = 0.0,
    ) -> None:
        """Store one array, zstd-compressed with bit shuffling.

        Args:
            name: path in the zip, e.g. "masks/000139"; folders become groups.
            values: any numeric array; of large planes each is a chunk.
            dimensions: a name for every axis.
            chunks: chunk shape; None = the whole array is one chunk.
            step: of float32 multiples of it, stored as `artifacts.quantized_array` does.
        Raises:
            ValueError: an array of this name is there already.
        """
        if name in self._names:
            raise ValueError(f"{self.path}: {name} is there already")
        self._names.add(name)
        parent = name.rpartition("/")[0]
        if parent and parent not in self._groups:
            self._group(parent, {})
        if isinstance(values, Planes):
            if not values.few:
                self._add_planes(name, values, dimensions, step)
                return
            held = np.empty(values.shape, values.dtype)
            for place, plane in enumerate(values.each):
                held[place] = plane
            values = held
        with refusals(self.path):
            for key, content in sorted(_encode(values, dimensions, chunks or values.shape, step).items()):
                self._write(f"{name}/{key}", content)

    def _add_planes(self, name: str, planes: Planes, dimensions: Sequence[str], step: float) -> None:
        kind = kind_of(np.array([planes.largest]), step) if step else None
        content = _shaped(planes.dtype, dimensions, step, kind, planes.shape, (1, *planes.shape[1:]))
        self._write(f"{name}/zarr.json", content)
        for number, plane in enumerate(planes.each):
            self._write(f"{name}/c/{number}/0/0", _chunk(plane, kind, step))

    def close(self) -> None:
        """Complete the zip and rename it into place."""
        with refusals(self.path):
            self._zip.close()
            self._file.close()
        write_whole(self.path, lambda unfinished: None)  # its content is there: sync and rename

    def abandon(self) -> None:
        """Discard what was written."""
        self._zip.fp = None  # not `close()`: it would write on, and the disk may be full
        with contextlib.suppress(OSError):
            self._file.close()
        remove(self._temporary)

    def _group(self, name: str, attributes: dict[str, Any]) -> None:
        self._groups.add(name)
        content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        self._write(f"{name}/zarr.json".lstrip("/"), json.dumps(content, indent=2, sort_keys=True).encode())

    def _write(self, key: str, content: bytes) -> None:
        with refusals(self.path):
            self._zip.writestr(zipfile.ZipInfo(key, _EPOCH), content)


def _encode(values: np.ndarray, dimensions: Sequence[str], chunks: Sequence[int], step: float) -> dict[str, bytes]:
    """Encode one array as Zarr keys and bytes, identical to zarr's own; a single chunk bypasses zarr for speed."""
    kind = kind_of(values, step) if step else None
    if not values.size or tuple(chunks) != values.shape:
        return _by_zarr(values, dimensions, chunks, step, kind)
    return {
        "zarr.json": _shaped(values.dtype, dimensions, step, kind, values.shape, values.shape),
        "/".join(["c", *("0" for _ in values.shape)]): _chunk(values, kind, step),
    }


def _chunk(values: np.ndarray, kind: np.dtype | None, step: float) -> bytes:
    from numcodecs import Blosc

    if kind is not None:
        return encode(values, kind, step)
    chunk: bytes = Blosc(**_BLOSC, shuffle=Blosc.BITSHUFFLE).encode(np.ascontiguousarray(values))
    return chunk


def _shaped(
    dtype: np.dtype,
    dimensions: Sequence[str],
    step: float,
    kind: np.dtype | None,
    shape: Sequence[int],
    chunks: Sequence[int],
) -> bytes:
    """Make the zarr.json of an array of this shape. Call before any chunk is made: it imports zarr, which turns off
    blosc's threads; with them the order of blocks would be random.
    """
    metadata = json.loads(_metadata(dtype.str, tuple(dimensions), step, kind))
    metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"] = list(shape), list(chunks)
    return json.dumps(metadata, indent=2).encode()


@lru_cache
def _metadata(dtype: str, dimensions: tuple[str, ...], step: float, kind: np.dtype | None) -> bytes:
    """Make the zarr.json of arrays that differ only in their sizes."""
    return _by_zarr(np.zeros([1] * len(dimensions), dtype), dimensions, [1] * len(dimensions), step, kind)["zarr.json"]


def _by_zarr(
    values: np.ndarray, dimensions: Sequence[str], chunks: Sequence[int], step: float, kind: np.dtype | None
) -> dict[str, bytes]:
    import zarr
    from zarr.codecs import BloscCodec
    from zarr.storage import MemoryStore

    store: dict[str, Any] = {}
    if kind is not None:
        how = codecs(kind, step)
    else:
        how = {"compressors": BloscCodec(**_BLOSC, shuffle="bitshuffle", typesize=values.dtype.itemsize)}
    array = zarr.create_array(
        MemoryStore(store),
        shape=values.shape,
        dtype=values.dtype,
        chunks=tuple(max(1, c) for c in chunks),
        fill_value=float("nan") if values.dtype.kind == "f" else 0,
        dimension_names=list(dimensions),
        config={"write_empty_chunks": True},
        **how,
    )
    array[...] = values
    return {key: buffer.to_bytes() for key, buffer in store.items()}


class ArrayReader:
    """Reads arrays of a part's zip. Every byte is checked against its CRC.

    Args:
        about: attributes that the root group must have: which part of which run the arrays are of.
    Raises:
        CorruptError: the zip, an entry or a chunk is damaged or missing, or the arrays are another part's.
        InputError: an array of planes is too large to be read at once.
    """

    def __init__(self, path: Path, about: dict[str, Any] | None = None) -> None:
        self.path = path
        try:
            self._file = open_plain(path)
            self._zip = zipfile.ZipFile(self._file)
            self._keys: dict[str, list[str]] = {}  # by array, so that no read looks at all names
            for key in self._zip.namelist():
                if name := array_of(key):
                    self._keys.setdefault(name, []).append(key)
            if about is not None:
                found = json.loads(self._zip.read("zarr.json"))["attributes"]["vitp"]
                if others := [f"{key} {found.get(key)}" for key in about if found.get(key) != about[key]]:
                    raise ValueError(f"it is of {', '.join(others)}")
        except FileNotFoundError as error:
            raise damaged(path, "is missing") from error
        except UserError:
            raise
        except Exception as error:  # a damaged directory fails in many ways
            raise self._corrupt(error) from error

    def __enter__(self) -> ArrayReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def read(self, name: str) -> np.ndarray:
        import zarr
        from zarr.buffer import default_buffer_prototype
        from zarr.storage import MemoryStore

        try:
            prefix = f"{name}/"
            keys = self._keys.get(name, [])
            metadata = json.loads(self._zip.read(f"{prefix}zarr.json"))
            check_metadata(metadata)
            if len(keys) == 2:  # one chunk: what zarr would do, without what that costs for every small array
                (chunk,) = (key for key in keys if not key.endswith("/zarr.json"))
                if wrote(metadata):
                    return decode(metadata, self._zip.read(chunk))
                if is_plain(metadata):
                    return decode_plain(metadata, self._zip.read(chunk))
            to_buffer = default_buffer_prototype().buffer.from_bytes
            store = MemoryStore({key[len(prefix) :]: to_buffer(self._zip.read(key)) for key in keys})
            array = zarr.open_array(store, mode="r", zarr_format=3)
            if array.nchunks_initialized < array.nchunks:
                raise ValueError("a chunk is missing")
            return np.asarray(array[...])
        except InputError as error:
            raise InputError(f"{self.path}: array {name}: {error.message}", error.hint) from error
        except Exception as error:  # so do damaged entries
            raise self._corrupt(error, name) from error

    def shape_of_planes(self, name: str) -> tuple[int, ...] | None:
        """Return the shape (P, h, w) of an array that can be read plane by plane; None of others."""
        try:
            metadata = json.loads(self._zip.read(f"{name}/zarr.json"))
            return tuple(metadata["shape"]) if has_planes(metadata) else None
        except Exception as error:
            raise self._corrupt(error, name) from error

    def planes(self, name: str) -> Iterator[np.ndarray]:
        """Read an array that has planes plane by plane, each (h, w)."""
        try:
            metadata = json.loads(self._zip.read(f"{name}/zarr.json"))
            check_metadata(metadata, by_plane=True)
            for number in range(metadata["shape"][0]):
                yield decode_plane(metadata, self._zip.read(f"{name}/c/{number}/0/0"))
        except Exception as error:
            raise self._corrupt(error, name) from error

    def _corrupt(self, error: Exception, name: str = "") -> CorruptError:
        return damaged(self.path, f"damaged ({f'array {name}: ' if name else ''}{_line(error)})")


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the bytes of a table as a Parquet file."""
    import pyarrow.parquet as pq

    made = io.BytesIO()
    pq.write_table(table, made, compression="zstd")
    return made.getvalue()


def sealed_index(path: Path, table: pa.Table) -> bytes:
    """Return the bytes of a table of a shard that will lie at `path`, for `RunStore.write` and `create`."""
    about = {**(table.schema.metadata or {}), PLACE: place(path).encode()}
    content = parquet_bytes(table.replace_schema_metadata(about))
    cut = _footer(content)
    return content[:cut] + _SEAL + hashlib.sha256(content).digest() + content[cut:]


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the bytes of a Parquet file; None = all columns.

    Every Parquet file of the package is read here, without Arrow's own threads: one that lets go of the bytes while the
    interpreter ends takes the process down (code 134).

    Raises:
        Exception: of many kinds, of a damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def read_index(path: Path, columns: Sequence[str] | None = None, run: str = "") -> pa.Table:
    """Read a part's rows, or another table of a shard.

    Args:
        run: digest of the run's plan that it must have been made for.
    Raises:
        CorruptError: it is damaged, belongs elsewhere, or is missing.
    """
    try:
        with open_plain(path) as index:
            content = index.read()
        _check_seal(content)
        table = read_parquet(content, columns)
    except FileNotFoundError as error:
        raise damaged(path, "is missing") from error
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise damaged(path, f"damaged ({_line(error)})") from error
    about = table.schema.metadata or {}
    require_place(about.get(PLACE, b"").decode(errors="replace"), path)
    if run and about.get(RUN) != run.encode():
        raise damaged(path, "was made for another run.json")
    return table


def arrays_digest(table: pa.Table) -> str:
    """Return the SHA-256 of the arrays that belong to a part's rows; "" without arrays."""
    digest: bytes = (table.schema.metadata or {}).get(ARRAYS_DIGEST, b"")
    return digest.decode(errors="replace")


ARRAYS_DIGEST, PLACE, RUN = b"vitp_arrays_sha256", b"vitp_place", b"vitp_run_sha256"
"""Keys of an index's metadata: digest of the arrays, place in the run, digest of the run's plan."""

_SEAL = b"vitp-sha256:"
"""Parquet's own checksums leave out page headers and the footer, where a flipped bit can change values silently. So the
digest of the whole file stands before the footer, a place that readers of Parquet never look at."""


def _footer(content: bytes) -> int:
    """Find the beginning of the footer: it ends with its length and a magic word, four bytes each."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def _check_seal(content: bytes) -> None:
    """Raise ValueError when the file changed since it was written."""
    cut = _footer(content)
    start = cut - len(_SEAL) - hashlib.sha256().digest_size
    if start <= 0 or not content[start:].startswith(_SEAL):
        raise ValueError("it has no checksum")
    if hashlib.sha256(content[:start] + content[cut:]).digest() != content[start + len(_SEAL) : cut]:
        raise ValueError("its checksum does not match")


def _line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
