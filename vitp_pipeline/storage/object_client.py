"""The objects of a run on an object store, by their names in the run: requests, and clear errors.

An object appears whole when its upload ends, as a file does when it is renamed.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import StorageError, UsageError, UserError

_EXTRAS = {"s3": "s3", "s3a": "s3"}
_OF_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "urllib3", "gcsfs", "google", "azure", "adlfs", "requests")
"""Packages whose exceptions mean that a store has refused or not answered."""


class ObjectClient:
    """The objects below a URL.

    Attributes:
        url: of the run, without a slash at its end.

    Every method takes the name of an object, or of a folder of them, below that URL ("proposals/run.json"), and raises
    StorageError when the store refuses or does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = _connect(url)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self._root.rpartition("/")[2]

    def is_object(self, name: str) -> bool:
        with self._answers(name):
            return bool(self._fs.isfile(self._key(name)))

    def get(self, name: str, target: Path) -> bool:
        """Download an object to a file; False if the object does not exist."""
        with self._answers(name):
            try:
                self._fs.get_file(self._key(name), str(target))
            except (FileNotFoundError, IsADirectoryError):
                return False
        return True

    def put(self, name: str, source: Path) -> None:
        """Send a file; it replaces the object of that name."""
        with self._answers(name):
            self._fs.put_file(str(source), self._key(name))

    def create(self, name: str, content: bytes) -> bool:
        """Create an object unless it exists: of several tasks at once one gets True, if the store can tell them apart
        (`If-None-Match`). Where it cannot, the last of several at the same moment wins, and all get True.
        """
        key = self._key(name)
        with self._answers(name):
            try:
                self._fs.pipe_file(key, content, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):  # a store without conditional writes
                if self._fs.exists(key):
                    return False
                self._fs.pipe_file(key, content)
        return True

    def write(self, name: str, content: bytes) -> None:
        """Make or replace an object."""
        with self._answers(name):
            self._fs.pipe_file(self._key(name), content)

    def read(self, name: str) -> bytes:
        """Read an object as it is now. Raises FileNotFoundError."""
        with self._answers(name):
            content: bytes = self._fs.cat_file(self._key(name))
        return content

    def delete(self, name: str) -> None:
        """Remove an object, if it exists."""
        with self._answers(name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._key(name))

    def entries(self, name: str) -> Iterator[tuple[str, int | None]]:
        """List the names directly below a folder, each with its size; None for a folder."""
        key = self._key(name)
        with self._answers(name):
            try:
                found = self._fs.ls(key, detail=True)
            except FileNotFoundError:
                return
        for entry in found:
            path = entry["name"].strip("/")
            if path != key.strip("/"):
                yield path.rpartition("/")[2], entry["size"] if entry["type"] == "file" else None

    def date(self, name: str) -> float:
        """Return when an object was written, by the store's clock, as `time.time` does. Raises FileNotFoundError."""
        with self._answers(name):
            return float(self._fs.modified(self._key(name)).timestamp())

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _answers(self, name: str) -> contextlib.AbstractContextManager[None]:
        return clear_errors(f"{self.url}/{name}")


def _connect(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the run's path in it). Raises UsageError or StorageError."""
    if not url.partition("://")[2].strip("/"):
        raise UsageError(f"{url}: names no bucket or folder", "Like s3://bucket/runs/camvid")
    fs, root = file_system(url)
    with clear_errors(url):
        try:
            fs.ls(root, detail=False)
        except FileNotFoundError as error:
            if "bucket" in str(error).lower():
                raise StorageError(f"{url}: no such bucket", "Create it first, or correct its name") from error
    return fs, root.rstrip("/")


def file_system(url: str) -> tuple[Any, str]:
    """Return (fsspec's file system, the path in it) of a URL. Nothing is asked of the store.

    Raises:
        UsageError: a package is missing, or there is no such scheme.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        # listings are never remembered: other tasks write, too
        found: tuple[Any, str] = fsspec.core.url_to_fs(
            url, use_listings_cache=False, skip_instance_cache=scheme != "memory"
        )
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        fix = f'pip install "vitp-pipeline[{extra}]"' if extra else f"Install what fsspec needs for {scheme}://"
        raise UsageError(f"{url}: a package is missing ({error})", fix) from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}", "RUN is a folder, or a URL like s3://bucket/runs/camvid") from error
    return found


@contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Turn the store's errors into one clear line; FileNotFoundError and FileExistsError pass."""
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError):
        raise
    except PermissionError as error:
        raise StorageError(
            f"{url}: the store refuses ({_line(error)})",
            "Check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID …) and their permissions",
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of the scratch folder
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _OF_CLIENTS:
            raise
        if "credentials" in str(error).lower():
            raise StorageError(
                f"{url}: no credentials ({_line(error)})",
                "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ) from error
        raise StorageError(
            f"{url}: the store does not answer ({_line(error)})",
            "Check the network and the endpoint (AWS_ENDPOINT_URL), then run the same command again",
        ) from error


def _line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
