"""The layout of a run: the paths of its files relative to the run, and the file types allowed there.

A run may have been moved, or shared with others who write to it. So nothing in it is known by an absolute path, and
below a run directory there are folders and regular files alone: no link leads out of it, no pipe makes a reader wait.
The run directory itself may be a link.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from pathlib import Path

from vitp_pipeline.errors import CorruptError

PREDICT = "predict-run"
"""Folder, beside the results of `vitp predict`, of its shards."""
STAGES = ("proposals", "features", "classifier", "class_scores", "evaluation", "exports", PREDICT)

_TEMPORARY = r"(?:\.[^/]+\.tmp)?"
_CLASSIFIER_FILES = (
    r"(?:(?:run|copies|done|model|best|last|validation)\.json|(?:model|best|last)\.safetensors|checkpoint\.pt|"
    rf"metrics\.jsonl|confusion\.npy|lock){_TEMPORARY}"
)
_STAGE_FILES = rf"(?:(?:run|copies|masks|result|files)\.json|images-[0-9a-f]{{12}}\.parquet){_TEMPORARY}"
_IN_SHARDS = rf"(?:/shards(?:/[0-9]{{5,}}(?:/[^/]+)?)?|/log(?:/[^/]+)?|/{_STAGE_FILES}"
_IN_STAGE = rf"{_IN_SHARDS}|/results(?:/[^/]+)*)?"
_PLACE = re.compile(
    rf"(?:^|/)(proposals{_IN_STAGE}"
    rf"|classifier(?:/[^/]+(?:/{_CLASSIFIER_FILES})?)?"
    rf"|(?:features|class_scores|evaluation)(?:/[0-9a-f]{{12}}{_IN_STAGE})?"
    rf"|exports(?:/[a-z0-9-]+-[0-9a-f]{{12}}{_IN_STAGE})?"
    rf"|{PREDICT}{_IN_SHARDS})?"
    rf"|jobs(?:/log(?:/[^/]+)?|/submitted\.json{_TEMPORARY})?|(?:digests\.json|report\.html){_TEMPORARY})$",
    re.DOTALL,
)


def place(path: Path) -> str:
    """Return the path of a file or folder in its run, "proposals/shards/00000/done.json"; elsewhere its name."""
    return _inside(path) or path.name


def _inside(path: Path) -> str:
    match = _PLACE.search(path.absolute().as_posix())
    return match[1] if match else ""


def run_of(path: Path) -> Path:
    """Return the run directory that a file belongs to; for a file in no run, its folder."""
    return path.parents[place(path).count("/")]


def index_path(shard_folder: Path, part: int) -> Path:
    """Return the path of a part's rows; this file commits the part."""
    return shard_folder / f"part-{part:04d}.parquet"


def arrays_path(shard_folder: Path, part: int, digest: str) -> Path:
    """Return the path of a part's arrays, named by their SHA-256, so that no task replaces those of another."""
    return shard_folder / f"part-{part:04d}-{digest[:12]}.zarr.zip"


_ARRAYS = re.compile(r"part-([0-9]{4,})-[0-9a-f]{12}\.zarr\.zip")


def part_of_arrays(name: str) -> int | None:
    """Return the part whose arrays a file of this name holds; None if it holds none."""
    match = _ARRAYS.fullmatch(name)
    return int(match[1]) if match else None


def totals_path(shard_folder: Path) -> Path:
    """Return the path of a shard's totals over all parts (`evaluation.totals`). The underscore hides the file from
    readers of the run directory such as `pyarrow.dataset`.
    """
    return shard_folder / "_totals.parquet"


def refuse_links(path: Path, seen: set[Path] | None = None) -> bool:
    """Return whether a file or folder is there.

    Args:
        seen: folders that were looked at before and are not looked at again; those that are seen now join them.
    Raises:
        CorruptError: it, or a folder on the way to it from the run directory, is a link, or neither a folder nor a
            regular file.
    """
    if not (inside := _inside(path)):
        return path.exists()
    seen = set() if seen is None else seen
    for number in reversed(range(len(Path(inside).parts))):
        own = path.parents[number - 1] if number else path
        if own in seen:
            continue
        try:
            mode = os.lstat(own).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        if stat.S_ISLNK(mode):
            raise CorruptError(f"{own}: is a link, and vitp follows no links inside a run", "Remove it")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise CorruptError(f"{own}: is neither a file nor a folder", "Remove it")
        if stat.S_ISDIR(mode):
            seen.add(own)
    return True


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file for reading; one of a run is never waited for. `RunStore.fetch` looks at the way to it.

    Raises:
        CorruptError: of a file of a run: a link, a pipe or a folder is in its place.
        FileNotFoundError: it does not exist.
    """
    if not _inside(path):
        return path.open("rb")
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def open_own(path: Path, flags: int) -> int:
    """Open a file for in-place changes; return its descriptor.

    Raises:
        CorruptError: as `open_plain`, or it has a second name, under which it may be somebody else's.
    """
    refuse_links(path)
    file = _open(path, flags)
    if os.fstat(file).st_nlink > 1:
        os.close(file)
        raise CorruptError(f"{path}: has a second name (a hard link)", "Remove it")
    return file


def _open(path: Path, flags: int) -> int:
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise CorruptError(f"{path}: is a link, a pipe or a folder in the place of a file", "Remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise CorruptError(f"{path}: is a link, a pipe or a folder in the place of a file", "Remove it")
    return file
