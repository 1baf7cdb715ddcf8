"""Files of the Hugging Face Hub, through huggingface_hub and its cache.

Its own environment variables hold: HF_HOME and HF_HUB_CACHE for the cache, HF_TOKEN, HF_ENDPOINT for a mirror,
HF_HUB_OFFLINE. A download that breaks is continued up to five times, and leaves no file behind.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vitp_pipeline.errors import InputError
from vitp_pipeline.storage.downloads.names import RemoteFile

LOG_IN = "Correct the name; for a private one log in with `hf auth login`, or set HF_TOKEN"


def download(file: RemoteFile, again: bool) -> Path:
    """Fetch a file of the Hub; return its place in the cache of huggingface_hub.

    Args:
        again: replaces a file that is there, which is damaged.
    Raises:
        InputError: no such repository, revision or file, no permission, no network, a broken connection.
    """
    try:
        return Path(hf_hub_download(file.repo, file.path, revision=file.revision or None, force_download=again))
    except Exception as error:  # names, permissions, networks and disks fail in many ways
        raise refused(file, error) from error


def version_of(file: RemoteFile, timeout: float) -> str:
    """Ask the Hub for the version of a file's content, its ETag. Raises any error."""
    url = hf_hub_url(file.repo, file.path, revision=file.revision or None)
    return get_hf_file_metadata(url, timeout=timeout).etag or ""


def refused(file: RemoteFile, error: BaseException) -> InputError:
    """Say in one line why a file of the Hub cannot be had, and what to do."""
    found = error
    while isinstance(found, LocalEntryNotFoundError | ValueError) and found.__cause__ is not None:
        found = found.__cause__
    place = f"{constants.ENDPOINT}/{file.repo}"
    if isinstance(found, GatedRepoError):
        return InputError(f"{file.name}: {file.repo} asks for permission", f"Accept its terms at {place}, then log in")
    if isinstance(found, RepositoryNotFoundError):
        return InputError(f"{file.name}: there is no repository {file.repo}, or it is private", LOG_IN)
    if isinstance(found, RevisionNotFoundError):
        return InputError(f"{file.name}: {file.repo} has no revision {file.revision}", f"Choose one of {place}")
    if isinstance(found, EntryNotFoundError) and not isinstance(found, LocalEntryNotFoundError):
        return InputError(f"{file.name}: {file.repo} has no file {file.path}", f"Choose one of {place}/tree/main")
    if isinstance(found, HFValidationError):
        return InputError(f"{file.name}: {_one_line(found)}", "Correct the name")
    if constants.HF_HUB_OFFLINE:
        return InputError(f"{file.name}: not fetched yet, and HF_HUB_OFFLINE forbids the network", elsewhere(file))
    if isinstance(found, HfHubHTTPError) and found.response is not None:
        why = f"{constants.ENDPOINT} answers with {found.response.status_code}"
        return InputError(f"{file.name}: {why}", "Run the same command again later")
    return InputError(f"{file.name}: cannot be fetched ({_one_line(found)})", elsewhere(file))


def elsewhere(file: RemoteFile) -> str:
    """Say how to have a file of the Hub without a network."""
    revision = f" --revision {file.revision}" if file.revision else ""
    return (
        f"Run the same command again with a network, or `hf download {file.repo} {file.path}{revision}` on a machine "
        "that has one, and give the path of the file"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
