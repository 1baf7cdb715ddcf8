"""Files of object stores and web servers, by paths: `s3:/bucket/data/a.jpg` is `s3://bucket/data/a.jpg` as pathlib
writes it.

Only `archives` asks here, so a data root may be any URL that fsspec knows. Nothing is written. Listings are not kept:
a folder of a million objects would be a gigabyte of them.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from vitp_pipeline.errors import StorageError
from vitp_pipeline.runtime.output import alias
from vitp_pipeline.storage.object_client import clear_errors, file_system

BLOCK = 2**18
"""Bytes asked for at once where a file is read in pieces, as an archive is."""
_LOCAL = ("file", "local")


def data_path(text: str) -> Path:
    """Return the path of what a user names: a path, `file://…`, or a URL that fsspec knows."""
    scheme, mark, rest = text.partition("://")
    return Path(unquote(rest)) if mark and scheme in _LOCAL else Path(text)


def is_remote(path: Path) -> bool:
    """Tell if a path is that of a URL."""
    text = str(path)
    scheme, mark, _ = text.partition(":/")
    return bool(mark) and not text.startswith("/") and _is_scheme(scheme)


def absolute(path: Path) -> Path:
    """Make a path absolute, links followed; one of a URL is."""
    return path if is_remote(path) else path.resolve()


def url_of(path: Path) -> str:
    """Return the URL of a remote path."""
    scheme, _, rest = str(path).partition(":/")
    return f"{scheme}://{rest}"


def name_of(path: Path) -> str:
    """Return what `data_path` makes this path of."""
    return url_of(path) if is_remote(path) else str(path)


def read(path: Path, limit: int) -> bytes:
    """Read at most `limit` + 1 bytes of a file. Raises FileNotFoundError; StorageError when the store refuses."""
    fs, key = _place(path)
    with clear_errors(url_of(path)):
        try:
            content: bytes = fs.cat_file(key, start=0, end=limit + 1)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            if fs.info(key)["size"]:
                raise
            content = b""  # no range of an empty object can be read
    return content


def read_piece(path: Path, start: int, size: int) -> bytes:
    """Read some bytes in the middle of a file. Raises as `read`."""
    fs, key = _place(path)
    with clear_errors(url_of(path)):
        content: bytes = fs.cat_file(key, start=start, end=start + size) if size else b""
    return content


def open_file(path: Path) -> BinaryIO:
    """Open a file to be read in pieces. Raises as `read`."""
    fs, key = _place(path)
    with clear_errors(url_of(path)):
        file: BinaryIO = fs.open(key, "rb", block_size=BLOCK)
    return file


def is_file(path: Path) -> bool:
    """True if an object exists."""
    fs, key = _place(path)
    with clear_errors(url_of(path)):
        return bool(fs.isfile(key))


def stamp(path: Path) -> tuple[int, str]:
    """Size of a file in bytes, and what changes when it is replaced. Raises FileNotFoundError."""
    fs, key = _place(path)
    with clear_errors(url_of(path)):
        about = fs.info(key)
    return int(about["size"] or 0), str(about.get("ETag") or about.get("LastModified") or about.get("created"))


def names(folder: Path, folders: bool) -> list[str]:
    """List the names of the files, or of the folders, directly in a folder; none where there is no such folder."""
    fs, key = _place(folder)
    with clear_errors(url_of(folder)):
        try:
            found = fs.ls(key, detail=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            if "bucket" in str(error).lower():
                raise StorageError(f"{url_of(folder)}: no such bucket", "Correct --data-root") from error
            return []
    own = key.strip("/")
    entries = ((entry["name"].strip("/"), entry["type"] == "directory") for entry in found)
    return [name.rpartition("/")[2] for name, is_folder in entries if is_folder == folders and name != own]


@lru_cache(64)
def _is_scheme(scheme: str) -> bool:
    if len(scheme) < 2 or scheme in _LOCAL:
        return False
    import fsspec

    return scheme in fsspec.available_protocols()


def _place(path: Path) -> tuple[Any, str]:
    """Return (fsspec's file system, the path in it)."""
    url = url_of(path)
    scheme, _, rest = url.partition("://")
    fs = _opened(scheme, rest.partition("/")[0], os.getpid())
    return fs, fs._strip_protocol(url)


@lru_cache(16)
def _opened(scheme: str, bucket: str, process: int) -> Any:
    """Open a file system: of its own for every process, whose requests a forked one would share."""
    alias(f"{scheme}:/{bucket}", f"{scheme}://{bucket}")  # in what people read
    return file_system(f"{scheme}://{bucket}")[0]
