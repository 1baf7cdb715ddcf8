"""Names of files that are being written, from which everybody can tell whether their writer still lives.

A killed task leaves its file; the next one that writes into the same folder removes it (`tidy`), and so does `vitp gc`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
from functools import cache
from pathlib import Path

from vitp_pipeline.storage.fs_ops import remove_tree

TEMPORARY = ".tmp"
"""Ending of files and folders that are being written."""
HOUR = 3600.0
"""Age in seconds at which an unchanged file of another machine, whose processes are not visible here, is stale."""
NAME_BYTES = 255
"""The longest name that file systems take."""
_OURS = re.compile(rf".*\.(?P<machine>[0-9a-f]{{8}})-(?P<process>\d+)-(?P<began>\d+){re.escape(TEMPORARY)}", re.DOTALL)

_tidied: set[Path] = set()
"""Folders that this process has looked at."""


def temporary(path: Path) -> Path:
    """Name the file in which this process writes what becomes `path`; no other task uses the same name."""
    process = os.getpid()
    ending = f".{_machine()}-{process}-{_began(process) or 0}{TEMPORARY}"
    return path.with_name(_shortened(path.name, NAME_BYTES - len(ending)) + ending)


def is_abandoned(path: Path) -> bool:
    """Tell whether nobody is writing a temporary file: its process is gone or, on another machine, it is old."""
    found = _OURS.fullmatch(path.name)
    if found and found["machine"] == _machine():
        began = _began(int(found["process"]))
        return began is None or (began > 0 and str(began) != found["began"])
    try:
        return time.time() - path.lstat().st_mtime > HOUR
    except OSError:
        return False


def tidy(folder: Path) -> None:
    """Remove what killed tasks left in a folder, once in the life of this process."""
    if folder in _tidied:
        return
    _tidied.add(folder)
    with contextlib.suppress(OSError):  # a file that cannot be removed does no harm
        for path in folder.iterdir():
            if path.name.endswith(TEMPORARY) and is_abandoned(path):
                remove_tree(path)


def _shortened(name: str, longest: int) -> str:
    """Shorten a name to a number of bytes: its beginning and a digest of the whole."""
    raw = os.fsencode(name)
    if len(raw) <= longest:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return f"{raw[: longest - len(digest) - 1].decode(errors='ignore')}~{digest}"


def _began(process: int) -> int | None:
    """Return when a process of this machine started, in ticks since boot; 0 if unknown, None if it is gone."""
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
        return int(status.rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0


@cache
def _machine() -> str:
    """Identify this machine, and the container that numbers its processes."""
    words = [socket.gethostname()]
    with contextlib.suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        words.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
