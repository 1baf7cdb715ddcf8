"""Sealed JSON files: files that a run reads again carry their own checksum.

The last key of such a file is its seal: the file's place in the run, and the SHA-256 of all bytes before that digest.

    "seal": {
      "place": "proposals/shards/00000/done.json",
      "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    }

So a changed digit, a cut or an empty file, and the file of another place are all noticed when it is read, and a run
that was moved is as good as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import CorruptError, IncompatibleError
from vitp_pipeline.runtime.output import with_aliases
from vitp_pipeline.storage.atomic_files import as_json, write_whole
from vitp_pipeline.storage.layout import open_plain, place, run_of

_END = re.compile(r'([0-9a-f]{64})"\n  }\n}\n')
_END_LENGTH = 64 + len('"\n  }\n}\n')
_PLAN_OF_0_1 = re.compile(r'"format_version": 1\b')


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed JSON file that belongs to no run's store. Raises what `write_whole` raises."""
    write_whole(path, sealed(path, content))


def sealed(path: Path, content: dict[str, Any]) -> str:
    """Return the text of a sealed JSON file that will lie at `path`, for `RunStore.write`."""
    head = as_json(content).removesuffix("\n}\n").removesuffix("{}\n") or "{"
    comma = "," if content else ""
    body = f'{head}{comma}\n  "seal": {{\n    "place": {json.dumps(place(path), ensure_ascii=False)},\n    "sha256": "'
    return f'{body}{hashlib.sha256(body.encode()).hexdigest()}"\n  }}\n}}\n'


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed JSON file; one of a run is fetched first.

    Raises:
        CorruptError: it is not as it was written, was written for another place, or is missing.
    """
    return unseal(read_text(path), path)


def read_text(path: Path) -> str:
    """Read the text of a file of a run. Raises CorruptError when it is missing or not UTF-8."""
    try:
        with open_plain(path) as file:
            return file.read().decode("utf-8")
    except FileNotFoundError as error:
        raise damaged(path, "is missing") from error
    except UnicodeDecodeError as error:
        raise damaged(path, "damaged (not UTF-8 text)") from error


def unseal(text: str, path: Path) -> dict[str, Any]:
    """Parse and check the text of a sealed JSON file that lies, or belongs, at `path`.

    Raises:
        CorruptError: it is not as it was written, or was written for another place.
        IncompatibleError: it is the run.json of vitp 0.1, which had no seals.
    """
    body, end = text[:-_END_LENGTH], _END.fullmatch(text[-_END_LENGTH:])
    if end is None and _PLAN_OF_0_1.search(text):
        raise of_older_version(path)
    if end is None:
        raise damaged(path, "damaged (it does not end with its checksum)")
    if hashlib.sha256(body.encode()).hexdigest() != end[1]:
        raise damaged(path, "damaged (its checksum does not match)")
    content: dict[str, Any] = json.loads(text)
    require_place(content.pop("seal")["place"], path)
    return content


def seal_page(text: str) -> str:
    """Append a page's digest to an HTML page as a comment, which only `vitp verify` reads."""
    return f"{text}<!-- vitp-sha256: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def page_is_whole(path: Path) -> bool:
    """Tell if a page is unchanged since `seal_page`."""
    with open_plain(path) as file:
        text, _, end = file.read().rpartition(b"<!-- vitp-sha256: ")
    return end == f"{hashlib.sha256(text).hexdigest()} -->\n".encode()


def require_place(of: str, path: Path) -> None:
    """Raise CorruptError when a file at `path` was written for another place, `of`."""
    if not f"/{path.absolute().as_posix()}".endswith(f"/{of}"):
        raise damaged(path, f"is the file of {of or 'no place in a run'}")


def of_older_version(path: Path) -> IncompatibleError:
    """Make the error for a file of a run that vitp 0.1 made."""
    return IncompatibleError(
        f"{path}: written by vitp 0.1, whose runs this version does not read", "Choose another --out"
    )


def damaged(path: Path, reason: str) -> CorruptError:
    """Make the error for a damaged file of a run, with its fix."""
    run = with_aliases(run_of(path))
    return CorruptError(f"{path}: {reason}", f"`vitp verify {run} --repair`, then run the stage again")
