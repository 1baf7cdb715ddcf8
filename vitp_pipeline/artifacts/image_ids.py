"""Ids of millions of images: one Arrow column in place of as many Python strings, and its file in a run.

Ten million ids are 800 MB as a list and 150 MB here. Of so many, run.json names the number and the digest, and
a file beside it has them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from vitp_pipeline.artifacts.parts import parquet_bytes, read_parquet
from vitp_pipeline.errors import UserError
from vitp_pipeline.storage.layout import open_plain
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1 << 16
_COLUMN = "image_id"


class TextColumn(Sequence[str]):
    """A sequence of strings, as Arrow holds them. A slice is a tuple.

    Args:
        column: of type string or large_string, without nulls.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextColumn:
        """Make one of strings; one that is one already is returned."""
        import pyarrow as pa

        if isinstance(texts, TextColumn):
            return texts
        return cls(pa.chunked_array([pa.array(texts, pa.large_string())]))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[str, ...]: ...
    def __getitem__(self, which: int | slice) -> str | tuple[str, ...]:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            if step != 1:
                return tuple(self[number] for number in range(start, stop, step))
            return tuple(self.column.slice(start, max(0, stop - start)).to_pylist())
        text: str = self.column[which if which >= 0 else which + len(self)].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self[start : start + ROWS_AT_ONCE]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TextColumn):
            return self is other or (len(self) == len(other) and self.digest == other.digest)
        return isinstance(other, (tuple, list)) and len(self) == len(other) and self == TextColumn.of(other)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the strings' lengths and bytes, 64 hex digits, however the column is cut up."""
        import pyarrow as pa
        import pyarrow.compute as pc

        lengths, content = hashlib.sha256(), hashlib.sha256()
        for chunk in self.column.chunks:
            for start in range(0, len(chunk), ROWS_AT_ONCE):
                piece = pa.concat_arrays([chunk.slice(start, ROWS_AT_ONCE).cast(pa.large_binary())])
                sizes = pc.binary_length(piece).to_numpy(zero_copy_only=False).astype("<i8")
                lengths.update(sizes.tobytes())
                first = int(np.frombuffer(piece.buffers()[1], np.int64)[piece.offset])
                content.update(memoryview(piece.buffers()[2] or b"")[first : first + int(sizes.sum())])
        return hashlib.sha256(lengths.digest() + content.digest()).hexdigest()

    def place(self, text: str) -> int | None:
        """Return the place of a string; None without one. The strings must be distinct."""
        order = self._order
        key = (lambda place: self[place]) if order is None else (lambda place: self[int(order[place])])
        found = bisect_left(range(len(self)), text.encode(), key=lambda place: key(place).encode())
        if found == len(self) or key(found) != text:
            return None
        return found if order is None else int(order[found])

    def first_twice(self) -> tuple[int, int] | None:
        """Return the places of a string and of its recurrence; None where all are distinct."""
        if (order := self._order) is None:
            return None
        import pyarrow.compute as pc

        for start in range(0, len(order) - 1, ROWS_AT_ONCE):
            ordered = self.column.take(order[start : start + ROWS_AT_ONCE + 1])
            same = pc.equal(ordered[:-1], ordered[1:]).to_numpy()
            if same.any():
                at = start + int(np.argmax(same))
                one, other = sorted((int(order[at]), int(order[at + 1])))
                return one, other
        return None

    @cached_property
    def _order(self) -> np.ndarray | None:
        """Places in ascending order of the strings' bytes; None where that is their own order, and all are distinct."""
        import pyarrow.compute as pc

        if len(self) < 2 or pc.all(pc.less(self.column[:-1], self.column[1:])).as_py():
            return None
        order: np.ndarray = pc.array_sort_indices(self.column.combine_chunks()).to_numpy().astype(np.int64)
        return order


class StoredIds(TextColumn):
    """Ids in a file of a run, which is read, and checked, when they are asked for.

    Args:
        count, digest: of the ids, as run.json says.
    """

    def __init__(self, store: RunStore, path: Path, count: int, digest: str) -> None:
        self._store, self.path, self._count, self._digest = store, path, count, digest

    def __len__(self) -> int:
        return self._count

    @property
    def digest(self) -> str:
        return self._digest

    @cached_property
    def column(self) -> pa.ChunkedArray:
        """Read the ids. Raises CorruptError when they are not those of run.json."""
        try:
            with open_plain(self._store.fetch(self.path)) as file:
                found = TextColumn(read_parquet(file.read(), [_COLUMN])[_COLUMN])
        except FileNotFoundError as error:
            raise damaged(self.path, "is missing") from error
        except UserError:
            raise
        except Exception as error:  # a damaged file fails in many ways
            raise damaged(self.path, "damaged (not a table of images)") from error
        if len(found) != self._count or found.digest != self._digest:
            raise damaged(self.path, "damaged (its ids are not those of run.json)")
        return found.column


def write_ids(store: RunStore, folder: Path, ids: TextColumn) -> StoredIds:
    """Write the ids of a stage's images beside its run.json, unless they are there."""
    import pyarrow as pa

    path = ids_path(folder, ids.digest)
    if not store.exists(path):
        table = pa.table({_COLUMN: ids.column.cast(pa.large_string())})
        store.write(path, parquet_bytes(table))
    return StoredIds(store, path, len(ids), ids.digest)


def ids_path(folder: Path, digest: str) -> Path:
    """Return the path of the file of a stage's ids, named by their digest: no task replaces those of another."""
    return folder / f"images-{digest[:12]}.parquet"
