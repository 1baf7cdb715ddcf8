"""Where the files of a run lie: in a folder, or on an object store.

Stages work in a folder. Of a run on a store (`--out s3://bucket/prefix`) that is a scratch folder of this process
alone, and the store holds the results (`object_store.Mirror`). What a stage must do or ask of a run beyond reading and
writing in a folder goes through here; of a run in a folder most of it is nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from vitp_pipeline.runtime.output import alias, with_aliases
from vitp_pipeline.storage.fs_ops import remove
from vitp_pipeline.storage.layout import refuse_links

if TYPE_CHECKING:
    from vitp_pipeline.storage.object_mirror import Mirror

_mirrors: dict[str, Mirror] = {}
"""Runs on stores that this process works on, by URL."""


def run_directory(text: str | Path) -> Path:
    """The folder in which a run is worked on: `text` itself, or for a URL a scratch folder.

    Args:
        text: a path, `file://…`, or a URL that fsspec knows, of a run or of one of its evaluation/ folders.
    Raises:
        UsageError: the URL's package is not installed, or nobody knows such URLs.
        StorageError: the store does not answer, or has no such bucket.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme in ("file", "local"):
        return Path(unquote(rest))
    from vitp_pipeline.storage.object_mirror import Mirror

    found = re.fullmatch(r"(.*?)/*(/evaluation/[0-9a-f]{12})?/*", text, re.DOTALL)
    assert found  # everything matches
    url, evaluation = found.groups("")
    if url not in _mirrors:
        _mirrors[url] = Mirror(url)
        alias(str(_mirrors[url].folder), url)
    return _mirrors[url].folder / evaluation.lstrip("/")


def mirror_of(path: Path) -> Mirror | None:
    """The store that holds a file; None of a file in a folder, as most are."""
    return next((mirror for mirror in _mirrors.values() if path.is_relative_to(mirror.folder)), None)


def shown(text: str | Path) -> str:
    """Text for people: with the URLs of runs in place of their scratch folders."""
    return with_aliases(text)


def there(path: Path) -> bool:
    """Whether a file exists. One that is only on a store is fetched, so that it can be read.

    Raises:
        CorruptError: inside a run, a link or a pipe is in its place.
    """
    refuse_links(path)
    mirror = mirror_of(path)
    return path.exists() if mirror is None else mirror.fetch(path)


def bring(paths: Iterable[Path]) -> None:
    """Nothing. From a store: fetches those of the files that exist, many at once."""
    paths = list(paths)
    if paths and (mirror := mirror_of(paths[0])) is not None:
        mirror.fetch_all(paths)


def publish(path: Path) -> None:
    """Nothing: the file is where it belongs. To a store it is sent, and appears there whole."""
    if (mirror := mirror_of(path)) is not None:
        mirror.put(path)


def publish_new(path: Path) -> bool:
    """True. On a store: whether the file could be put there; False when one of its name was there before."""
    mirror = mirror_of(path)
    return True if mirror is None else mirror.put_new(path)


def release(path: Path) -> None:
    """Nothing. Of a file that is on a store the copy here is removed: it is not needed any more."""
    if mirror_of(path) is not None:
        remove(path)


def discard(path: Path) -> None:
    """Removes a file, if it exists: on a store the object, and what was fetched of it."""
    if (mirror := mirror_of(path)) is not None:
        mirror.delete(path)
    remove(path)


def files_in(folder: Path) -> dict[str, int]:
    """Sizes in bytes by name of the files of a folder, in one look; none where there is no folder. Links are no files.

    Raises:
        CorruptError: a link leads there from inside a run.
    """
    refuse_links(folder)
    if (mirror := mirror_of(folder)) is not None:
        return mirror.files(folder)
    try:
        with os.scandir(folder) as entries:
            return {entry.name: size for entry in entries if (size := _size(entry)) is not None}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none where there is no folder. Links are no folders. Raises as
    `files_in`.
    """
    refuse_links(folder)
    if (mirror := mirror_of(folder)) is not None:
        return mirror.folders(folder)
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def stamp(path: Path) -> list[int]:
    """Size and modification time of a file that exists: whether it is as it was."""
    if (mirror := mirror_of(path)) is not None:
        return mirror.stamp(path)
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def look_anew(run: Path) -> None:
    """Nothing. What was fetched from a store is forgotten: it may have changed since."""
    if (mirror := mirror_of(run)) is not None:
        mirror.forget()


def _size(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else None
    except FileNotFoundError:  # renamed meanwhile
        return None
