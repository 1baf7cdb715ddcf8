"""Files on disk or inside archives, by one kind of path.

A file in an archive has a path that goes through it: `D/train2017.zip/train2017/000000000009.jpg`. Zip archives and
uncompressed tar archives are read at random places and never unpacked; their lists of members are kept in memory.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import InputError

ENDINGS = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
REPACK = "Unpack it, or make a plain .tar or .zip of what it holds"

_ORDINARY = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,99}/){0,16}[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
"""Names without a fault, for the many that are so: `check_inside` looks at the others closely."""
_THROUGH = re.compile(r"\.(?:zip|tar)(?=/|$)", re.IGNORECASE)


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a file, on disk or in an archive.

    Args:
        limit: most bytes, unpacked.
    Raises:
        FileNotFoundError: no such file or member.
        OSError, zipfile.BadZipFile, zlib.error: damaged.
        InputError: larger than the limit, not a file (a pipe, a device), or an archive that cannot be used.
    """
    parts = _through_archive(path)
    if parts is not None:
        return _open_archive(parts[0]).read(parts[1], limit)
    # without waiting: a pipe would do so for ever
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a file", "Replace it, then run again")
        _check_size(path, status.st_size, limit)
        return file.read()


def is_file(path: Path) -> bool:
    """Whether a file, or a member of an archive, exists."""
    try:
        parts = _through_archive(path)
        return path.is_file() if parts is None else parts[1] in _open_archive(parts[0]).names
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def check_inside(name: str, where: object) -> str:
    """A relative path that a data file names, as it is.

    Links are followed: a person sets them. What a data file names is only let through where it stays below the folder
    that it is relative to, so that data from elsewhere cannot have other files read.

    Raises:
        InputError: absolute, with `..`, or no name that a file could have; `where` says which file names it.
    """
    if _ORDINARY.fullmatch(name):
        return name
    parts = name.split("/")
    fault = ""
    if not name or name.startswith("/"):
        fault = "is no relative path"
    elif ".." in parts:
        fault = "leads out of the data root"
    elif "\0" in name or not all(len(part.encode("utf-8", "replace")) < 256 for part in parts) or len(parts) > 64:
        fault = "is no file name"
    else:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            fault = "is not UTF-8"
    if fault:
        shown = ascii(name if len(name) < 80 else f"{name[:77]}...")
        raise InputError(f"{where}: the name {shown} {fault}", "Nothing outside of the data root is read; correct it")
    return name


def is_archive(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def listing(base: Path, pattern: str) -> Iterator[str]:
    """Paths below `base`, relative to it, that match a pattern; in no particular order.

    Args:
        base: a folder, an archive, or a folder in an archive.
        pattern: `*`, `?` and `[…]` as in a shell, `**` for any number of folders, `{word}` for a part of one name.
    """
    parts = _through_archive(base)
    if parts is None:
        yield from _below(base, "", pattern.split("/"))
        return
    archive, prefix = parts
    start, fits = (f"{prefix}/" if prefix else ""), compiled(pattern)
    for name in _open_archive(archive).names:
        if name.startswith(start) and fits.fullmatch(name, len(start)):
            yield name[len(start) :]


@lru_cache(256)
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression for whole relative paths; each `{word}` is a group, equal where it recurs."""
    text, seen = "", set()
    for token in re.split(r"(\*\*/|\*|\?|\[[^\]]+\]|\{\w+\})", pattern):
        if token == "**/":
            text += r"(?:[^/]+/)*"
        elif token == "*":
            text += r"[^/]*"
        elif token == "?":
            text += r"[^/]"
        elif token.startswith("[") and token.endswith("]"):
            text += token.replace("[!", "[^")
        elif re.fullmatch(r"\{\w+\}", token):
            word = token[1:-1]
            text += f"(?P={word})" if word in seen else f"(?P<{word}>[^/]+)"
            seen.add(word)
        else:
            text += re.escape(token)
    return re.compile(text)


def archives_in(folder: Path) -> list[Path]:
    """The zip and tar archives that lie in a folder, by name."""
    return _files_ending(folder, ENDINGS)


def compressed_in(folder: Path) -> list[Path]:
    """The archives in a folder that cannot be read at random places."""
    return _files_ending(folder, COMPRESSED)


def _files_ending(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if e.name.lower().endswith(endings) and e.is_file())


class _Archive:
    """The members of an archive, and their bytes. Reading is safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        try:
            if path.suffix.lower() == ".zip":
                # given an open file, ZipFile never closes it, whatever its count of readers says
                self._zip: zipfile.ZipFile | None = zipfile.ZipFile(self._file)
                self.names: dict[str, Any] = {
                    _plain(info.filename): info for info in self._zip.infolist() if not info.is_dir()
                }
            else:
                self._zip = None
                with tarfile.open(fileobj=self._file, mode="r:") as tar:
                    self.names = {_plain(member.name): member for member in tar if member.isreg()}
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            self._file.close()
            raise InputError(f"{path}: a damaged archive, or a compressed one ({error})", REPACK) from error

    def read(self, name: str, limit: int | None = None) -> bytes:
        if name not in self.names:
            raise FileNotFoundError(f"{name} is not in {self.path}")
        member = self.names[name]
        # a zip's member never unpacks to more than it says: the rest would not fit its CRC, and is not read
        _check_size(self.path / name, member.size if self._zip is None else member.file_size, limit)
        if self._zip is not None:
            return self._zip.read(member)
        content = os.pread(self._file.fileno(), member.size, member.offset_data)
        if len(content) < member.size:
            raise OSError("the archive ends in the middle of it")
        return content


def _check_size(path: Path, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise InputError(f"{path}: has {size / 1e9:.1f} GB, more than {limit / 1e9:.1f} GB", "A smaller copy would do")


def _plain(name: str) -> str:
    return name.removeprefix("./")


_opening = threading.Lock()


def _open_archive(path: Path) -> _Archive:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{path}: this archive does not exist", "Check --data-root") from error
    with _opening:
        # of its own for every process: a forked one shares the position in the file with its parent
        return _kept_archive(path, found.st_size, found.st_mtime_ns, os.getpid())


@lru_cache(64)
def _kept_archive(path: Path, size: int, changed: int, process: int) -> _Archive:
    return _Archive(path)


def _through_archive(path: Path) -> tuple[Path, str] | None:
    """(archive, member) of a path that goes through an archive, else None."""
    text = path.as_posix()
    for match in _THROUGH.finditer(text):
        archive = text[: match.end()]
        if _is_file(archive):
            return Path(archive), text[match.end() + 1 :]
    return None


@lru_cache(256)
def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _below(folder: Path, start: str, components: list[str]) -> Iterator[str]:
    """Descends where the pattern names folders, lists only where it leaves names open."""
    first, rest = components[0], components[1:]
    if first == "**":
        yield from _below(folder, start, rest)
        yield from (
            p for name in _names(folder, folders=True) for p in _below(folder / name, f"{start}{name}/", components)
        )
        return
    if not re.search(r"[*?\[{]", first):
        if rest and is_archive(folder / first):
            yield from (f"{start}{first}/{name}" for name in listing(folder / first, "/".join(rest)))
        elif rest:
            yield from _below(folder / first, f"{start}{first}/", rest)
        elif (folder / first).is_file():
            yield start + first
        return
    fits = compiled(first)
    for name in _names(folder, folders=bool(rest)):
        if fits.fullmatch(name):
            if rest:
                yield from _below(folder / name, f"{start}{name}/", rest)
            else:
                yield start + name


def _names(folder: Path, folders: bool) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # what macOS leaves beside a file when it copies to other disks bears that file's ending
                if entry.is_dir() == folders and not entry.name.startswith("._"):
                    yield entry.name
    except (FileNotFoundError, NotADirectoryError):
        return
