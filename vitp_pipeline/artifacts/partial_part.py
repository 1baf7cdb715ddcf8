"""Partial parts: the finished images of an uncommitted part, with which the next process continues.

    _partial-0003.zarr.zip  arrays of some of the part's images
    _partial-0003.parquet   their rows, with the run's fingerprint and the digest of the arrays; its rename counts

The underscore keeps them out of what readers of the run directory (`pyarrow.dataset`) take for results.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitp_pipeline.artifacts.array_names import array_name, without_view
from vitp_pipeline.artifacts.parts import array_of, arrays_digest, read_index, sealed_index
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.atomic_files import refusals, write_whole
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.fs_ops import new_file, remove, rename
from vitp_pipeline.storage.layout import arrays_path, index_path, part_of_arrays
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged, read_sealed
from vitp_pipeline.storage.temporaries import TEMPORARY, temporary

if TYPE_CHECKING:
    import pyarrow as pa

_FINGERPRINT, _ARRAYS, _COUNT = b"vitp_partial_of", b"vitp_partial_arrays_sha256", b"vitp_partial_images"


def partial_paths(folder: Path, part: int) -> tuple[Path, Path]:
    """Return the paths of a partial part's rows and arrays."""
    return folder / f"_partial-{part:04d}.parquet", folder / f"_partial-{part:04d}.zarr.zip"


class PartialPart:
    """Finished images of an unfinished part. A partial part of another run is not used."""

    def __init__(self, run: StageRun, shard: int, part: int) -> None:
        self.rows_path, self.arrays_path = partial_paths(run.shard_folder(shard), part)
        self._store, self._fingerprint, self._images = run.store, run.fingerprint, run.parts(shard)[part]
        self.rows: pa.Table | None = self._read()

    @property
    def images(self) -> tuple[str, ...]:
        """The images that are finished."""
        return () if self.rows is None else images_of(self.rows)

    @property
    def left(self) -> tuple[str, ...]:
        """The part's other images."""
        return _without(self._images, self.images)

    def keep(self, rows: pa.Table, arrays: Path | None) -> None:
        """Hold the rows of some of the part's images from now on, and `arrays`, which is moved here if there is such a
        file; None: those that it has.

        Raises:
            StorageError: disk full or similar; finished images are then lost, committed parts are not.
        """
        with refusals(self.rows_path):
            self._store.remove(self.rows_path)
            if arrays is not None and arrays.exists():
                rename(arrays, self.arrays_path)
                self._store.publish(self.arrays_path)
        digest = file_digest(self.arrays_path) if self.arrays_path.exists() else ""
        about = {
            **(rows.schema.metadata or {}),
            _FINGERPRINT: self._fingerprint.encode(),
            _ARRAYS: digest.encode(),
            _COUNT: str(len(images_of(rows))).encode(),
        }
        self._store.write(self.rows_path, sealed_index(self.rows_path, rows.replace_schema_metadata(about)))
        self.rows = rows

    def joined(self, rest: pa.Table, arrays: Path) -> pa.Table:
        """Join the rows kept here with further ones, in the part's order, and their arrays in one file, `arrays`.

        Both are byte for byte what an uninterrupted run would have made.
        """
        import pyarrow as pa

        if self.rows is None:
            return rest
        if self.arrays_path.exists():
            sources = {self.arrays_path: self.images, arrays: images_of(rest)}
            _join_archives({path: own for path, own in sources.items() if path.exists()}, self._images, arrays)
        # read back from Parquet, types and metadata may differ in what means nothing
        partial_rows = self.rows.replace_schema_metadata(None).cast(rest.schema)
        rows = pa.concat_tables([partial_rows, rest]).combine_chunks()
        place = {image: number for number, image in enumerate(self._images)}
        places = [place[image] for image in rows["image_id"].to_pylist()]
        return rows.take(sorted(range(len(rows)), key=places.__getitem__)).combine_chunks()

    def remove(self) -> None:
        with refusals(self.rows_path):
            self._store.remove(self.rows_path)
            self._store.remove(self.arrays_path)

    def _read(self) -> pa.Table | None:
        if not self._store.exists(self.rows_path):
            return None
        try:
            rows = read_index(self._store.fetch(self.rows_path))
            about = rows.schema.metadata or {}
            arrays = self._store.fetch(self.arrays_path)
            digest = file_digest(arrays) if arrays.exists() else ""
            found = images_of(rows)
            reason = ""
            if about.get(_FINGERPRINT) != self._fingerprint.encode():
                reason = "it was made with other settings"
            elif about.get(_ARRAYS) != digest.encode():
                reason = "its arrays changed after they were written"
            elif not found or found != _without(self._images, _without(self._images, found)):
                reason = "it lists other images"
        except (CorruptError, KeyError, OSError) as error:
            reason = getattr(error, "message", "") or str(error)
        if not reason:
            return rows
        say(f"{self.rows_path}: not used ({reason}); its images are processed again")
        self.remove()
        return None


def partial_images(rows_path: Path) -> int:
    """Count the images of a partial part by its rows file's metadata; 0 when it cannot be read."""
    import pyarrow.parquet as pq

    with contextlib.suppress(Exception):  # a damaged file fails in many ways; the task that resumes reports it
        return int((pq.read_schema(rows_path).metadata or {})[_COUNT])
    return 0


_OF_PARTIAL = re.compile(r"_partial-([0-9]{4,})\.(?:parquet|zarr\.zip)")


def stale_files(store: RunStore, folder: Path) -> list[str]:
    """List files that killed tasks left in a shard's folder: temporary files, partial parts of committed parts,
    and arrays that no index names. Correct only while no task works there.

    Raises:
        CorruptError: the index of a part that has several files of arrays cannot be read, or one that done.json names
            is missing.
    """
    files = store.list(folder)
    arrays: dict[int, list[str]] = {}
    found = {name for name in files if name.endswith(TEMPORARY)}
    for name in files:
        if (part := part_of_arrays(name)) is not None:
            arrays.setdefault(part, []).append(name)
        if (partial := _OF_PARTIAL.fullmatch(name)) and index_path(folder, int(partial[1])).name in files:
            found.add(name)
    for part, names in arrays.items():
        index = index_path(folder, part)
        if index.name not in files:
            if "done.json" in files and index.name in _committed(store, folder):
                raise damaged(index, "is missing, though the shard is finished")
            found |= set(names)
        elif len(names) > 1:
            own = arrays_digest(read_index(store.fetch(index), []))
            found |= set(names) - {arrays_path(folder, part, own).name}
    return sorted(found)


def _committed(store: RunStore, folder: Path) -> Collection[str]:
    """List the files that a finished shard has, as its done.json says."""
    files: dict[str, str] = read_sealed(store.fetch(folder / "done.json")).get("files", {})
    return files


def images_of(rows: pa.Table) -> tuple[str, ...]:
    """List the images of a part's rows, in their order; an image may have several rows."""
    return tuple(dict.fromkeys(rows["image_id"].to_pylist()))


def _without(images: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    unwanted = set(others)
    return tuple(image for image in images if image not in unwanted)


def _join_archives(sources: dict[Path, Collection[str]], images: Sequence[str], target: Path) -> None:
    """Merge the arrays of several zips into one, as if they had been written image by image in their order.

    Args:
        sources: of each the images whose arrays are taken.
        images: of the part. target: may be a source.
    """
    joined = temporary(target)
    with refusals(target), contextlib.ExitStack() as opened:
        archives = [(opened.enter_context(zipfile.ZipFile(path)), set(own)) for path, own in sources.items()]
        place = {array_name(image): (number, image) for number, image in enumerate(images)}
        entries: list[tuple[int, zipfile.ZipFile, zipfile.ZipInfo]] = []
        for archive, own in archives:
            entries += [(number, archive, entry) for number, entry in _placed(archive.infolist(), place, own)]
        entries.sort(key=lambda entry: entry[0])
        try:
            with new_file(joined) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
                seen: set[str] = set()
                for _, archive, entry in entries:
                    if entry.filename not in seen:  # a group's may recur
                        seen.add(entry.filename)
                        out.writestr(zipfile.ZipInfo(entry.filename, entry.date_time), archive.read(entry))
        except BaseException:
            remove(joined)
            raise
    write_whole(target, lambda unfinished: None)  # its content is there: sync and rename


def _placed(
    entries: Sequence[zipfile.ZipInfo], place: dict[str, tuple[int, str]], own: Collection[str]
) -> list[tuple[int, zipfile.ZipInfo]]:
    """Each entry with the place of its image; a group's is that of the array that follows it. Those of images that are
    not one's own are left out.

    Args:
        place: number and id of an image by the name of its arrays.
    """
    found, groups = [], []
    for entry in entries:
        number, image = place.get(without_view((array_of(entry.filename) or "").partition("/")[2]), (0, None))
        if image is None:
            groups.append(entry)
        elif image in own:
            found += [(number, e) for e in (*groups, entry)]
            groups = []
    return found + [(len(place), entry) for entry in groups]
