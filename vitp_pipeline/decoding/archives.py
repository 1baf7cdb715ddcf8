"""Read files on disk, on object stores, or inside archives there, by one kind of path.

A file in an archive has a path that goes through it: `D/train2017.zip/train2017/000000000009.jpg`. Zip archives and
uncompressed tar archives are read at random places and never unpacked; their lists of members are kept in memory. A
path that begins with the scheme of a URL, `s3:/bucket/data`, leads to a store (`remote`).
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import threading
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from vitp_pipeline.decoding import read_ahead, remote
from vitp_pipeline.decoding.remote import is_remote
from vitp_pipeline.errors import InputError, UserError

ENDINGS = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
REPACK = "Unpack it, or make a plain .tar or .zip of what it holds"
MAX_BYTES = 2**30
"""Of a file, also after unpacking it from an archive."""
AT_ONCE = 2**20
"""Bytes unpacked at a time."""
LEAST_BOMB, MOST_UNPACKED = 2**28, 200
"""A member above this size and this compression ratio counts as a zip bomb."""

_ORDINARY = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,99}/){0,16}[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
"""Names without a fault, for the many that are so: `check_inside` looks at the others closely."""
_DRIVE = re.compile("[A-Za-z]:/")
_THROUGH = re.compile(r"\.(?:zip|tar)(?=/|$)", re.IGNORECASE)


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a file, on disk, on a store or in an archive.

    Args:
        limit: most bytes, unpacked.
    Raises:
        FileNotFoundError: no such file or member.
        OSError: the file system refuses.
        StorageError: the store refuses.
        InputError: larger than the limit, not a file (a pipe, a device), or damaged in its archive.
    """
    if (fetched := read_ahead.fetched(path)) is not None:
        content = fetched.result()
        _check_size(path, len(content), limit)
        return content
    return _read(path, limit)


def reading_ahead(paths: Iterable[Path]) -> AbstractContextManager[None]:
    """Fetch the files that lie on stores, in this order, while the block runs: `read_bytes` finds them here."""
    far = [path for path in paths if is_remote(path)]
    return read_ahead.reading_ahead(far, lambda path: _read(path, MAX_BYTES)) if far else nullcontext()


def _read(path: Path, limit: int) -> bytes:
    parts = _through_archive(path)
    if parts is not None:
        return _open_archive(parts[0]).read(parts[1], limit)
    if is_remote(path):
        content = remote.read(path, limit)
        _check_size(path, len(content), limit)
        return content
    with open_file(path) as file:
        _check_size(path, os.fstat(file.fileno()).st_size, limit)
        return file.read()


def open_file(path: Path) -> BinaryIO:
    """Open a file on disk for reading. Raises InputError if it is not a regular file: a pipe would block forever."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise InputError(f"{path}: not a file", "Replace it, then run again")


def is_file(path: Path) -> bool:
    """True if a file, or a member of an archive, exists."""
    try:
        parts = _through_archive(path)
        return _is_plain_file(path) if parts is None else parts[1] in _open_archive(parts[0]).names
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def lookalike(path: Path) -> str:
    """Describe an existing file whose name differs from a missing one's only in case or Unicode form, or ""."""
    other = _plain_names(path.parent).get(_plain_name(path.name))
    return f", but {other!a} does: {path.name!a} is another case or Unicode form (NFC, NFD)" if other else ""


@lru_cache(8)
def _plain_names(folder: Path) -> dict[str, str]:
    try:
        return {_plain_name(name): name for name in listing(folder, "*")}
    except (OSError, InputError):
        return {}


def _plain_name(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_inside(name: str, where: object) -> str:
    """Check a relative path that a data file names, and return it unchanged.

    Links are followed: a person sets them. A path from a data file is accepted only if it stays below the folder
    that it is relative to, so that data from elsewhere cannot have other files read.

    Raises:
        InputError: absolute, with `..`, or not a possible file name; `where` says which file names it.
    """
    if _ORDINARY.fullmatch(name):
        return name
    parts = name.split("/")
    fault = ""
    if not name or name.startswith("/"):
        fault = "is not a relative path"
    elif ".." in parts:
        fault = "leads out of the data root"
    elif "\0" in name or not all(len(part.encode("utf-8", "replace")) < 256 for part in parts) or len(parts) > 64:
        fault = "is not a file name"
    else:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            fault = "is not UTF-8"
    if fault:
        shown = ascii(name if len(name) < 80 else f"{name[:77]}...")
        raise InputError(f"{where}: the name {shown} {fault}", "Nothing outside of the data root is read; correct it")
    return name


def check_named(name: object, where: object) -> str:
    """Check a relative path as `check_inside`; one written on Windows is refused with the reason.

    Raises:
        InputError: see there; not text, or with backslashes.
    """
    if not isinstance(name, str):
        raise InputError(f"{where}: the file name {ascii(name)[:80]} is not text", "Correct it")
    if "\\" in name or _DRIVE.match(name):
        raise InputError(
            f"{where}: the name {name!a} is a path of Windows",
            "Write it with / and relative to the folder of images",
        )
    return check_inside(name, where)


def is_archive(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and _is_plain_file(path)


def is_folder(path: Path) -> bool:
    """True if files may be listed there: a folder, or an archive. A folder of a store exists if anything is in it,
    which is not asked.
    """
    return is_remote(path) or path.is_dir() or is_archive(path)


def _is_plain_file(path: Path) -> bool:
    return remote.is_file(path) if is_remote(path) else path.is_file()


def listing(base: Path, pattern: str) -> Iterator[str]:
    """List paths below `base`, relative to it, that match a pattern; in no particular order.

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
    """Compile a pattern to a regular expression for relative paths; each `{word}` is a group, equal if repeated."""
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
    """List the zip and tar archives in a folder, by name."""
    return _files_ending(folder, ENDINGS)


def compressed_in(folder: Path) -> list[Path]:
    """List the archives in a folder that do not allow random access."""
    return _files_ending(folder, COMPRESSED)


def _files_ending(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    if is_remote(folder):
        names = remote.names(folder, folders=False)
        return sorted(folder / name for name in names if name.lower().endswith(endings))
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if e.name.lower().endswith(endings) and e.is_file())


class _Archive:
    """The members of an archive, and their bytes. Reading is safe from several threads.

    Attributes:
        names: members by name; a tar's later one replaces an earlier one, as `tar -r` means it.
        twofold: names that two members of a zip with different content have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.twofold: set[str] = set()
        self._file = remote.open_file(path) if is_remote(path) else path.open("rb")
        try:
            if path.suffix.lower() == ".zip":
                # given an open file, ZipFile never closes it, whatever its count of readers says
                self._zip: zipfile.ZipFile | None = zipfile.ZipFile(self._file)
                self.names: dict[str, Any] = {}
                for info in self._zip.infolist():
                    name = _plain(info.filename)
                    if not info.is_dir() and self.names.setdefault(name, info).CRC != info.CRC:
                        self.twofold.add(name)
            else:
                self._zip = None
                with tarfile.open(fileobj=self._file, mode="r:") as tar:
                    self.names = {_plain(m.name): m for m in tar if m.isreg() and not m.issparse()}
        except Exception as error:  # a damaged list of members fails in many ways
            self._file.close()
            raise InputError(f"{path}: a damaged archive, or a compressed one ({error})", REPACK) from error

    def read(self, name: str, limit: int) -> bytes:
        if name not in self.names:
            raise FileNotFoundError(f"{name} is not in {self.path}")
        if name in self.twofold:
            raise InputError(f"{self.path / name}: is in its archive twice, with different content", REPACK)
        member = self.names[name]
        try:
            if self._zip is not None:
                if member.file_size > LEAST_BOMB and member.file_size > MOST_UNPACKED * member.compress_size:
                    raise InputError(
                        f"{self.path / name}: its {member.compress_size / 1e6:.1f} MB would unpack to "
                        f"{member.file_size / 1e9:.1f} GB",
                        REPACK,
                    )
                with open_member(self._zip, member, limit, self.path) as file:
                    return b"".join(iter(lambda: file.read(AT_ONCE), b""))
            _check_size(self.path / name, member.size, limit)
            if is_remote(self.path):
                return remote.read_piece(self.path, member.offset_data, member.size)
            if member.offset_data + member.size > os.fstat(self._file.fileno()).st_size:
                raise EOFError("the archive ends in the middle of it")
            return os.pread(self._file.fileno(), member.size, member.offset_data)
        except UserError:
            raise
        except Exception as error:  # damaged members fail in many ways
            raise InputError(
                f"{self.path / name}: damaged in its archive ({error})", "Copy or fetch it again"
            ) from error


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int, path: Path) -> IO[bytes]:
    """Open a member of a zip, to be read some bytes at a time: then never more is unpacked than it says it has.

    Raises:
        InputError: larger than the limit, encrypted, or packed by a method whose output zipfile does not bound.
        zipfile.BadZipFile: damaged, as are other exceptions.
    """
    name = path / member.filename
    _check_size(name, member.file_size, limit)
    if member.flag_bits & 1:
        raise InputError(f"{name}: is encrypted", REPACK)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{name}: uses an unsupported compression method ({member.compress_type})", REPACK)
    return archive.open(member)


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise InputError(f"{path}: has {size / 1e9:.1f} GB, more than {limit / 1e9:.1f} GB", "Use a smaller copy")


def _plain(name: str) -> str:
    return name.removeprefix("./")


_opening = threading.Lock()


def _open_archive(path: Path) -> _Archive:
    try:
        found = _remote_stamp(path) if is_remote(path) else (path.stat().st_size, path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise InputError(f"{path}: this archive does not exist", "Check --data-root") from error
    with _opening:
        # of its own for every process: a forked one shares the position in the file with its parent
        return _kept_archive(path, *found, os.getpid())


@lru_cache(64)
def _remote_stamp(path: Path) -> tuple[int, str]:
    """Ask once: a request for every member would double them."""
    return remote.stamp(path)


@lru_cache(64)
def _kept_archive(path: Path, size: int, changed: int | str, process: int) -> _Archive:
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
    return _is_plain_file(Path(path))


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
        elif _is_plain_file(folder / first):
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
    if is_remote(folder):
        yield from (name for name in remote.names(folder, folders) if not name.startswith("._"))
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # macOS leaves companion files with the same suffix when it copies to other disks
                if entry.is_dir() == folders and not entry.name.startswith("._"):
                    yield entry.name
    except (FileNotFoundError, NotADirectoryError):
        return
