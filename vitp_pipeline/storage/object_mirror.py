"""A run on an object store, and the scratch folder in which this process works on it.

An object appears whole when its upload ends, as a file does when it is renamed; so files are sent one after another in
the order in which they would be renamed, and what commits a part or a shard (its index, done.json) is an object written
last. The store alone counts: the scratch folder is new for every process, holds what it has fetched and made, and is
removed when it ends, or by the next process on this machine when it was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vitp_pipeline.errors import StorageError, UsageError, UserError
from vitp_pipeline.storage.fs_ops import make_folder, remove, rename

ARCHIVE = ".zarr.zip"
ARCHIVES_KEPT = 16
"""Fetched archives of arrays that stay in the scratch folder: the oldest goes when another comes."""
AT_ONCE = 32
"""Requests at once where many small files are fetched."""
SCRATCH = "VITP_SCRATCH"
"""Environment variable: where scratch folders lie; without it where temporary files do (TMPDIR)."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_OF_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "urllib3", "gcsfs", "google", "azure", "adlfs", "requests")
"""Packages whose exceptions mean that a store has refused or not answered."""


class Mirror:
    """A run on a store.

    Attributes:
        url: of the run, without a slash at its end.
        folder: the scratch folder.

    Every method raises StorageError when the store refuses or does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = _connect(url)
        self._fetched: list[Path] = []
        self._guard = threading.Lock()
        self.folder = _scratch_folder() / self._root.rpartition("/")[2]
        make_folder(self.folder)

    def key(self, path: Path) -> str:
        return f"{self._root}/{path.relative_to(self.folder).as_posix()}"

    def fetch(self, path: Path) -> bool:
        """Whether a file exists; then it is in the scratch folder. A copy that is there is taken for good."""
        if path.exists():
            return True
        from vitp_pipeline.storage.atomic_files import refusals
        from vitp_pipeline.storage.temporaries import temporary

        unfinished = temporary(path).with_suffix(f".{threading.get_ident()}.part")
        with refusals(path), self.answers(path):
            make_folder(path.parent)
            try:
                self._fs.get_file(self.key(path), str(unfinished))
                rename(unfinished, path)
            except (FileNotFoundError, IsADirectoryError):
                return False
            finally:
                remove(unfinished)
        if path.name.endswith(ARCHIVE):
            self._make_room(path)
        return True

    def fetch_all(self, paths: Iterable[Path]) -> None:
        """Fetches those files that exist, many at once."""
        with ThreadPoolExecutor(AT_ONCE) as fetchers:
            for _ in fetchers.map(self.fetch, paths):
                pass

    def put(self, path: Path) -> None:
        """Sends a file; it replaces the object of its name."""
        with self.answers(path):
            self._fs.put_file(str(path), self.key(path))

    def put_new(self, path: Path) -> bool:
        """Sends a small file unless there is an object of its name; False when there is, and the file then goes."""
        if self.create(path, path.read_bytes()):
            return True
        remove(path)
        return False

    def create(self, path: Path, content: bytes) -> bool:
        """Makes an object unless it exists: of several tasks at once one gets True, where the store can tell them apart
        (`If-None-Match`). Where it cannot, the last of several at the same moment wins, and all get True.
        """
        key = self.key(path)
        with self.answers(path):
            try:
                self._fs.pipe_file(key, content, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):  # a store without conditional writes
                if self._fs.exists(key):
                    return False
                self._fs.pipe_file(key, content)
        return True

    def write(self, path: Path, content: bytes) -> None:
        """Makes or replaces an object."""
        with self.answers(path):
            self._fs.pipe_file(self.key(path), content)

    def read(self, path: Path) -> bytes:
        """The content of an object as it is now. Raises FileNotFoundError."""
        with self.answers(path):
            content: bytes = self._fs.cat_file(self.key(path))
        return content

    def delete(self, path: Path) -> None:
        """Removes an object, if it exists."""
        with self.answers(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.key(path))

    def files(self, folder: Path) -> dict[str, int]:
        """Sizes by name of the objects directly below a folder."""
        return {name: entry["size"] for name, entry in self._list(folder) if entry["type"] == "file"}

    def folders(self, folder: Path) -> list[str]:
        return sorted(name for name, entry in self._list(folder) if entry["type"] == "directory")

    def stamp(self, path: Path) -> list[int]:
        """Size and modification time in ns, by the store's clock. Raises FileNotFoundError."""
        with self.answers(path):
            return [self._fs.size(self.key(path)), int(self._fs.modified(self.key(path)).timestamp() * 1e9)]

    def forget(self) -> None:
        """Removes what was fetched."""
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else remove(entry)

    @contextmanager
    def answers(self, path: Path) -> Iterator[None]:
        """Turns what the store refuses into one clear line; FileNotFoundError and FileExistsError pass."""
        with _clear(f"{self.url}/{path.relative_to(self.folder).as_posix()}"):
            yield

    def _list(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        key = self.key(folder).removesuffix("/.")
        with self.answers(folder):
            try:
                entries = self._fs.ls(key, detail=True)
            except FileNotFoundError:
                return []
        paths = ((entry["name"].strip("/"), entry) for entry in entries)
        return [(path.rpartition("/")[2], entry) for path, entry in paths if path != key.strip("/")]

    def _make_room(self, path: Path) -> None:
        with self._guard:
            self._fetched.append(path)
            gone, self._fetched = self._fetched[:-ARCHIVES_KEPT], self._fetched[-ARCHIVES_KEPT:]
        for old in gone:  # who is reading one goes on reading it
            remove(old)


def _connect(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the run's path in it). Raises UsageError or StorageError."""
    import fsspec

    scheme, _, rest = url.partition("://")
    if not rest.strip("/"):
        raise UsageError(f"{url}: names no place", "Like s3://bucket/runs/camvid")
    try:
        # listings are never remembered: other tasks write, too
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=scheme != "memory")
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f'pip install "vitp-pipeline[{extra}]"' if extra else f"Install what fsspec needs for {scheme}://"
        raise UsageError(f"{url}: a package is missing ({error})", hint) from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}", "RUN is a folder, or a URL like s3://bucket/runs/camvid") from error
    with _clear(url):
        try:
            fs.ls(root, detail=False)
        except FileNotFoundError as error:
            if "bucket" in str(error).lower():
                raise StorageError(f"{url}: there is no such bucket", "Make it first, or fix its name") from error
    return fs, root.rstrip("/")


@contextmanager
def _clear(url: str) -> Iterator[None]:
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError):
        raise
    except PermissionError as error:
        raise StorageError(
            f"{url}: the store refuses ({_line(error)})",
            "Check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID …) and what they are allowed to do",
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of the scratch folder
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _OF_CLIENTS:
            raise
        if "credentials" in str(error).lower():
            raise StorageError(f"{url}: no credentials ({_line(error)})", "Set AWS_PROFILE or its kin") from error
        raise StorageError(
            f"{url}: the store does not answer ({_line(error)})",
            "Check the network and the endpoint (AWS_ENDPOINT_URL), then run the same command again",
        ) from error


def _line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def _scratch_folder() -> Path:
    """A new folder of this process alone; removes those of processes that were killed."""
    parent = Path(os.environ.get(SCRATCH) or tempfile.gettempdir())
    make_folder(parent)
    for old in parent.glob("vitp-run-*"):
        with contextlib.suppress(OSError), (old / "held").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
            shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="vitp-new-", dir=parent)).resolve()
    held = (new / "held").open("wb")
    fcntl.flock(held, fcntl.LOCK_EX)
    folder = new.rename(new.with_name(new.name.replace("vitp-new-", "vitp-run-")))  # from now on others look at it
    atexit.register(_drop, folder, held, os.getpid())
    return folder


def _drop(folder: Path, held: BinaryIO, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
    held.close()
