"""What is finished of a part whose task was told to stop: an uncommitted short part, from which the next one goes on.

    _spool-0003.zarr.zip    arrays of the part's first images
    _spool-0003.parquet     their rows, with the run's fingerprint and the digest of the arrays; its rename counts

The underscore keeps them out of what readers of the run directory (`pyarrow.dataset`) take for results.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitp_pipeline.artifacts.files import refusals, temporary, write_here
from vitp_pipeline.artifacts.parts import index_path, read_index, write_index
from vitp_pipeline.artifacts.places import discard, files_in, publish, there
from vitp_pipeline.artifacts.writes import new_file, remove, rename
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.fingerprint import file_digest
from vitp_pipeline.progress import say

if TYPE_CHECKING:
    import pyarrow as pa

_FINGERPRINT, _ARRAYS = b"vitp_spool_of", b"vitp_spool_arrays_sha256"


class Spool:
    """The finished images of a part that is not.

    Args:
        folder: the shard's.
        fingerprint: of the run; a spool of another one is not used.
        images: ids of the part's images.
    """

    def __init__(self, folder: Path, part: int, fingerprint: str, images: Sequence[str]) -> None:
        self.rows_path = folder / f"_spool-{part:04d}.parquet"
        self.arrays_path = folder / f"_spool-{part:04d}.zarr.zip"
        self._fingerprint, self._images = fingerprint, tuple(images)
        self.rows: pa.Table | None = self._read()

    @property
    def images(self) -> tuple[str, ...]:
        """The images that are finished: the part's first ones."""
        return () if self.rows is None else images_of(self.rows)

    def keep(self, rows: pa.Table, arrays: Path) -> None:
        """Takes over `arrays` (if that file is there) and the rows of the part's first images.

        Raises:
            StorageError: disk full and its kin; what was finished is lost then, not what was committed.
        """
        with refusals(self.rows_path):
            discard(self.rows_path)
            if arrays.exists():
                rename(arrays, self.arrays_path)
                publish(self.arrays_path)
        digest = file_digest(self.arrays_path) if self.arrays_path.exists() else ""
        about = {**(rows.schema.metadata or {}), _FINGERPRINT: self._fingerprint.encode(), _ARRAYS: digest.encode()}
        write_index(self.rows_path, rows.replace_schema_metadata(about))

    def joined(self, rest: pa.Table, arrays: Path) -> pa.Table:
        """The rows of the spool and of the images after it; their arrays become one file, `arrays`.

        Both are what they would be had the images been made in one go, byte for byte.
        """
        import pyarrow as pa

        if self.rows is None:
            return rest
        if self.arrays_path.exists():
            _join_archives([self.arrays_path, *([arrays] if arrays.exists() else [])], arrays)
        # read back from Parquet, types and metadata may differ in what means nothing
        spooled = self.rows.replace_schema_metadata(None).cast(rest.schema)
        return pa.concat_tables([spooled, rest]).combine_chunks()

    def remove(self) -> None:
        with refusals(self.rows_path):
            discard(self.rows_path)
            discard(self.arrays_path)

    def _read(self) -> pa.Table | None:
        if not there(self.rows_path):
            return None
        try:
            rows = read_index(self.rows_path)
            about = rows.schema.metadata or {}
            digest = file_digest(self.arrays_path) if there(self.arrays_path) else ""
            found = images_of(rows)
            reason = ""
            if about.get(_FINGERPRINT) != self._fingerprint.encode():
                reason = "it is of other settings"
            elif about.get(_ARRAYS) != digest.encode():
                reason = "its arrays are not those that were written"
            elif not found or found != self._images[: len(found)]:
                reason = "it has other images"
        except (CorruptError, KeyError, OSError) as error:
            reason = getattr(error, "message", "") or str(error)
        if not reason:
            return rows
        say(f"{self.rows_path}: not used ({reason}); its images are made anew")
        self.remove()
        return None


def left_over(folder: Path) -> list[Path]:
    """The spools of parts that are committed: a task was killed before it had removed them."""
    files = files_in(folder)
    found = sorted(name for name in files if name.startswith("_spool-"))
    parts = (int(name.removeprefix("_spool-").partition(".")[0]) for name in found)
    return [folder / name for name, part in zip(found, parts, strict=True) if index_path(folder, part).name in files]


def images_of(rows: pa.Table) -> tuple[str, ...]:
    """The images of a part's rows, in their order; an image may have several."""
    return tuple(dict.fromkeys(rows["image_id"].to_pylist()))


def _join_archives(sources: Sequence[Path], target: Path) -> None:
    """One zip with the entries of several, a name that recurs (a group's) only once. `target` may be a source."""
    joined = temporary(target)
    with refusals(target):
        try:
            with new_file(joined) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
                seen: set[str] = set()
                for source in sources:
                    with zipfile.ZipFile(source) as archive:
                        for entry in archive.infolist():
                            if entry.filename not in seen:
                                seen.add(entry.filename)
                                out.writestr(zipfile.ZipInfo(entry.filename, entry.date_time), archive.read(entry))
        except BaseException:
            remove(joined)
            raise
    write_here(target, lambda unfinished: None)  # its content is there: sync and rename
