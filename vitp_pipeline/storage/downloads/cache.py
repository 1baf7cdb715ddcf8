"""The cache of remote files: what each name has held, files of servers, and files that were converted.

    CACHE/names/…json       a name, the local file, its SHA-256, and what the server says of its version
    CACHE/files/…/FILE      files of https addresses; those of the Hub lie in the cache of huggingface_hub
    CACHE/converted/…       classifiers and generators made of files in their authors' layout

CACHE is the environment variable VITP_CACHE, else vitp in $XDG_CACHE_HOME or ~/.cache. Everything in it may be
removed at any time; it is then fetched or made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import CorruptError, StorageError, UserError
from vitp_pipeline.storage.atomic_files import refusals
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.fs_ops import make_folder
from vitp_pipeline.storage.sealed import read_sealed, write_sealed

CACHE = "VITP_CACHE"
ELSEWHERE = f"Set {CACHE} to a folder that can be written, with room"


def cache_folder() -> Path:
    """Return the folder of the cache; it may not exist."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "vitp"


@dataclass(frozen=True)
class Note:
    """Content of a name when it was fetched.

    Attributes:
        path: of the local file. sha256: of its content.
        size, changed: of the local file: bytes, and its modification time in ns.
        version: what the server calls the content (ETag), "" if it does not.
        fetched: the day, for people.
    """

    name: str
    path: str
    sha256: str
    size: int
    changed: int
    version: str
    fetched: str

    @staticmethod
    def of(name: str, path: Path, sha256: str, version: str) -> Note:
        """Describe a file that has just been fetched."""
        status, today = path.stat(), time.strftime("%Y-%m-%d", time.gmtime())
        return Note(name, str(path), sha256, status.st_size, status.st_mtime_ns, version, today)

    def is_true(self) -> bool:
        """Tell if the local file is there and as it was; it is read only where its time or size has changed."""
        path = Path(self.path)
        try:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (self.size, self.changed):
                return True
            return status.st_size == self.size and file_digest(path) == self.sha256
        except OSError:
            return False


_used: dict[str, Note] = {}
"""What this process has used, by name: a name means one content as long as it lives."""


def note_path(name: str) -> Path:
    """Return where the note of a name lies."""
    return cache_folder() / "names" / f"{_short(name)}.json"


def read_note(name: str) -> Note | None:
    """Read what a name held; None where nothing, or nothing readable, is known."""
    try:
        return Note(**read_sealed(note_path(name)))
    except (UserError, OSError, TypeError, KeyError, ValueError):
        return None


def write_note(note: Note) -> None:
    """Remember what a name holds; in a cache that cannot be written it is not remembered."""
    with contextlib.suppress(StorageError, CorruptError):
        write_sealed(note_path(note.name), asdict(note))


def seconds_since(name: str) -> float:
    """Return the time since the note of a name was written."""
    try:
        return time.time() - note_path(name).stat().st_mtime
    except OSError:
        return 0.0


def file_path(name: str, file: str) -> Path:
    """Return where the file of an https address lies."""
    return cache_folder() / "files" / _short(name) / file


@contextlib.contextmanager
def held(what: str) -> Iterator[None]:
    """Hold a lock of the cache while the block runs, as one of all processes; it waits for the others.

    Only to spare them the work: what they write has names of its own and is renamed, whole, into place.

    Raises:
        StorageError: the cache cannot be written.
    """
    from huggingface_hub.utils import WeakFileLock

    folder = cache_folder() / "locks"
    with contextlib.ExitStack() as stack:
        with cache_refusals(folder):
            make_folder(folder)
            stack.enter_context(WeakFileLock(folder / f"{_short(what)}.lock"))
        yield


@contextlib.contextmanager
def cache_refusals(path: Path) -> Iterator[None]:
    """As `atomic_files.refusals`, with a fix for the cache."""
    try:
        with refusals(path):
            yield
    except StorageError as error:
        raise StorageError(error.message, ELSEWHERE) from error


def used(name: str) -> Note | None:
    """Return what a name meant when this process used it before."""
    return _used.get(name)


def use(note: Note) -> None:
    """Remember for this process what a name means."""
    _used[note.name] = note


def used_files() -> dict[str, str]:
    """Return the SHA-256 of the remote files that this process has used, by their names."""
    return {name: note.sha256 for name, note in sorted(_used.items())}


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a local file, told from memory for one that was fetched."""
    known = next((note for note in _used.values() if note.path == str(path)), None)
    return known.sha256 if known is not None and known.is_true() else file_digest(path)


def converted(source: Path, digest: str, file: str, settings: Any, make: Callable[[Path], object]) -> Path:
    """Return what `make(path)` makes of a file, made once for the same content and settings.

    Args:
        source: for its name; its content is known by `digest`.
        file: name of the file or folder that is made, which must appear whole.
        settings: JSON types, what the result depends on besides the content.
        make: writes a path that does not exist; the last file it writes is the path.
    """
    key = json.dumps([source.name, digest, settings], sort_keys=True)
    path = cache_folder() / "converted" / _short(key) / file
    if not path.exists():
        with held(key):
            if not path.exists():
                with cache_refusals(path.parent):
                    make_folder(path.parent)
                    make(path)
    return path


def used_now(note: Note) -> Note:
    """Return a note with the size and time that its file has now."""
    status = Path(note.path).stat()
    return replace(note, size=status.st_size, changed=status.st_mtime_ns)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
