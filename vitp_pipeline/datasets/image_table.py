"""Tables of images: a Parquet file in place of a folder that would have to be listed.

    image   path of an image below the data root
    id      its id; without this column the file's name without ending or, where these recur, its path without ending
    label   path of its label file; without this column as the split's `labels` says, or none

`vitp list-images` makes one. Ten million rows are read in seconds, and nothing else is looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vitp_pipeline.artifacts.image_ids import ROWS_AT_ONCE, TextColumn
from vitp_pipeline.artifacts.parts import parquet_bytes, read_parquet
from vitp_pipeline.datasets.identity import ENDINGS
from vitp_pipeline.decoding.archives import check_inside, listing, read_bytes
from vitp_pipeline.errors import InputError, UserError
from vitp_pipeline.storage.atomic_files import write_whole

if TYPE_CHECKING:
    import pyarrow as pa

ENDING = ".parquet"


def is_table(path: str) -> bool:
    """Tell if a path is that of a table of images."""
    return path.endswith(ENDING)


class ImageTable:
    """The rows of a table of images.

    Raises:
        InputError: not such a file, or an image without a path or an id.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        try:
            table = read_parquet(read_bytes(path))
            table = table.select([name for name in ("image", "id", "label") if name in table.column_names])
            table = table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))
        except FileNotFoundError as error:
            raise InputError(f"{path}: this table of images does not exist", "Make it by `vitp list-images`") from error
        except UserError:
            raise
        except Exception as error:  # a damaged file fails in many ways
            raise InputError(f"{path}: not a table of images ({error})", "Make it by `vitp list-images`") from error
        if "image" not in table.column_names or any(column.null_count for column in table.columns[:1]):
            raise InputError(f"{path}: needs the column `image`, a path below the data root in every row")
        if "id" in table.column_names and table["id"].null_count:
            raise InputError(f"{path}: has rows without an `id`")
        self._images = TextColumn(table["image"])
        self._labels: pa.ChunkedArray | None = table["label"] if "label" in table.column_names else None
        self.ids: Sequence[str] = TextColumn(table["id"]) if "id" in table.column_names else ids_of(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def result_names(self) -> TextColumn:
        """Name the files that are made of images: by their paths, without ending where that tells them apart."""
        names = _without_ending(self._images)
        return names if names.first_twice() is None else self._images

    def image(self, number: int) -> str:
        """Return the path of an image. Raises InputError where it leads out of the data root."""
        return check_inside(self._images[number], self.path)

    def label(self, number: int) -> str | None:
        """Return the path of a label file, if the table says it. Raises as `image`."""
        label = None if self._labels is None else self._labels[number].as_py()
        return None if label is None else check_inside(label, self.path)


def write_table(path: Path, root: Path, pattern: str = "**/*") -> int:
    """List the images below a folder, in an archive or on a store, in the order of their paths.

    Args:
        path: the table to write, a local file.
        pattern: of paths below the root; of the files that it names, those with one of `identity.ENDINGS` are listed.
    Returns:
        how many they are.
    Raises:
        InputError: no image is there.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = (name for name in listing(root, pattern) if PurePosixPath(name).suffix.lower() in ENDINGS)
    chunks = [pa.array(names, pa.large_string()) for names in iter(lambda: list(islice(found, ROWS_AT_ONCE)), [])]
    if not chunks:
        raise InputError(f"{root}: no image matches {pattern}", f"Looked for {', '.join(ENDINGS)}")
    images = pa.chunked_array(chunks)
    table = pa.table({"image": images.take(pc.array_sort_indices(images.combine_chunks()))})
    write_whole(path, parquet_bytes(table))
    return len(table)


def ids_of(paths: TextColumn) -> TextColumn:
    """Return the names without folder and ending of files or, where these recur, their paths without ending."""
    import pyarrow.compute as pc

    below = _without_ending(paths)
    names = TextColumn(pc.replace_substring_regex(below.column, r"^.*/", ""))
    return names if names.first_twice() is None else below


def _without_ending(paths: TextColumn) -> TextColumn:
    import pyarrow.compute as pc

    return TextColumn(pc.replace_substring_regex(paths.column, r"([^/])\.[^./]*$", r"\1"))
