"""Read JSON files of other programs, or refuse them before they fill the memory."""

from __future__ import annotations

import json
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitp_pipeline.decoding.archives import read_bytes
from vitp_pipeline.errors import InputError, MissingDataError

SMALL = 2**20
"""Bytes of a file that is parsed without a look at what it would take."""
_MEMORY = {b"{": 200, b"[": 100, b",": 32}
"""Bytes that Python takes for what each of these begins, about; the text itself is held twice."""


def read_foreign_json(path: Path, what: str) -> Any:
    """Read a JSON file, on disk or in an archive, in UTF-8 (with or without a byte order mark), UTF-16 or UTF-32.

    Args:
        what: it is, for messages: "annotation file".
    Raises:
        MissingDataError: missing.
        InputError: not JSON, or it would take more than three quarters of the memory that there is.
    """
    limit = memory_limit() * 3 // 4
    try:
        content = read_bytes(path, limit // 2)
        need = 0 if len(content) < SMALL else 2 * len(content) + sum(content.count(c) * n for c, n in _MEMORY.items())
        if need > limit:
            raise InputError(
                f"{path}: would take some {need / 1e9:.1f} GB of memory to read, more than {limit / 1e9:.1f}",
                f"Give a smaller {what}, or read it on a machine with more memory",
            )
        return json.loads(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(f"{path}: the {what} does not exist", "Check the path and --data-root") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})", f"Make or download the {what} again") from error
    except OSError as error:
        raise InputError(f"{path}: the {what} cannot be read ({error})", "Copy or download it again") from error
    except MemoryError as error:
        raise InputError(f"{path}: does not fit in memory", f"Give a smaller {what}") from error


def memory_limit() -> int:
    """Return the memory that this process may take, in bytes: the machine's, its container's or its own limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    with suppress(OSError, ValueError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
