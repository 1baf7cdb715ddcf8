"""The local file of a name: fetched once, then from the cache, without a network.

What a name held when it was first fetched is remembered by its SHA-256 (`cache`). A file of another content is never
taken in its place unasked: a damaged one is fetched again, one that the server has changed meanwhile is reported, and
one with another digest than the name, the paper's table (`published`) or the cache says is refused.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from vitp_pipeline.errors import InputError
from vitp_pipeline.runtime.output import is_terminal
from vitp_pipeline.runtime.progress import is_hushed, quiet, say
from vitp_pipeline.storage.downloads import hub, web
from vitp_pipeline.storage.downloads.cache import (
    Note,
    held,
    note_path,
    read_note,
    seconds_since,
    use,
    used,
    used_now,
    write_note,
)
from vitp_pipeline.storage.downloads.names import RemoteFile, parse_remote
from vitp_pipeline.storage.downloads.published import published_digest
from vitp_pipeline.storage.fingerprint import file_digest

ASK_AGAIN = 24 * 3600.0
"""Seconds after which a server is asked whether a cached file has changed."""
PATIENCE = 5.0
"""Seconds that it has to answer."""


def fetch(text: str) -> Path:
    """Return the local file of a name such as `hf:OWNER/REPO/FILE` or an https address.

    Several processes may ask for it at once; one of them fetches it.

    Raises:
        UsageError: not such a name.
        InputError: it cannot be fetched, or is another file than it must be. Nothing is left in its place.
        StorageError: the cache cannot be written.
    """
    file = parse_remote(text)
    wanted = file.sha256 or published_digest(file.name)
    note = used(file.name)
    if note is None or (wanted and note.sha256 != wanted) or not Path(note.path).exists():
        note = _cached(file, wanted)
        if note is None:
            with held(file.name):
                note = _cached(file, wanted) or _fetched(file, wanted)
        use(note)
    return Path(note.path)


def _cached(file: RemoteFile, wanted: str) -> Note | None:
    """Return what is in the cache; None where nothing is, or not what is wanted, or something damaged."""
    note = read_note(file.name)
    if note is None or (wanted and note.sha256 != wanted) or not note.is_true():
        return None
    if not wanted and not file.is_fixed and seconds_since(file.name) > ASK_AGAIN and not constants.HF_HUB_OFFLINE:
        _tell_if_changed(file, note)
        write_note(used_now(note))
    return note


def _tell_if_changed(file: RemoteFile, note: Note) -> None:
    with contextlib.suppress(Exception), _quietly():  # no network, no answer: the cached file is as good as it was
        version = (hub if file.on == "hub" else web).version_of(file, PATIENCE)
        if note.version and version and version != note.version:
            say(
                f"{file.name} has changed since it was fetched on {note.fetched}; the fetched file is used. "
                f"To take the new one remove {note_path(file.name)}"
            )


def _fetched(file: RemoteFile, wanted: str) -> Note:
    """Fetch a file, and remember it."""
    before = read_note(file.name)
    damaged = before is not None and Path(before.path).exists() and not before.is_true()
    why = " again: the cached file is damaged" if damaged else ""
    say(f"fetching {file.name}{why}")

    digests: list[str] = []

    def check(path: Path) -> None:
        digests.append(file_digest(path))
        _require(file, digests[0], wanted, before)

    with _quietly():
        version = ""
        with contextlib.suppress(Exception):  # it is only to notice changes later; the download tells what is wrong
            version = (hub if file.on == "hub" else web).version_of(file, PATIENCE)
        if file.on == "hub":
            path = hub.download(file, damaged)
            check(path)
        else:
            path = web.download(file, check)
    digest = digests[0]
    note = Note.of(file.name, path, digest, version)
    write_note(note)
    pin = "" if wanted or file.is_fixed else f"; to pin it name it {file.name}#sha256={digest}"
    say(f"fetched {file.file}: {note.size / 1e6:,.1f} MB, SHA-256 {digest}{pin}")
    return note


def _require(file: RemoteFile, digest: str, wanted: str, before: Note | None) -> None:
    """Raise InputError where a fetched file is another one than the name means."""
    if wanted and digest != wanted:
        of = "its name says" if file.sha256 else "stages/paper/rows.toml says"
        raise InputError(
            f"{file.name}: has SHA-256 {digest}, {of} {wanted}",
            "It was changed on the server, or by somebody on the way; correct the digest if the change is intended",
        )
    if not wanted and before is not None and digest != before.sha256:
        raise InputError(
            f"{file.name}: is another file now, of SHA-256 {digest}; on {before.fetched} it was {before.sha256}",
            f"If the change is intended, name it {file.name}#sha256={digest}",
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Let the library show its bar on a terminal, and nothing else."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet(logging.getLogger("huggingface_hub")))
        if (is_hushed() or not is_terminal(2)) and not are_progress_bars_disabled():
            disable_progress_bars()
            stack.callback(enable_progress_bars)
        yield
