"""Files behind https addresses, through the downloader of huggingface_hub, without its token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from vitp_pipeline.errors import InputError, UserError
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.downloads.cache import cache_refusals, file_path
from vitp_pipeline.storage.downloads.names import RemoteFile
from vitp_pipeline.storage.fs_ops import new_file

AGAIN = "Run the same command again with a network, or fetch the file yourself and give its path"


def download(file: RemoteFile, check: Callable[[Path], None]) -> Path:
    """Fetch a file into the cache, where it appears whole or not at all; a cut connection is continued five times.

    Args:
        check: called with the whole file before it appears; raises what refuses it.
    Raises:
        InputError: no such file, no permission, no network, a broken connection. StorageError: no room in the cache.
    """
    path = file_path(file.name, file.file)
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{file.name}: not fetched yet, and HF_HUB_OFFLINE forbids the network", AGAIN)

    def fill(unfinished: Path) -> None:
        with new_file(unfinished) as content:
            http_get(file.url, content, displayed_filename=file.file)
        check(unfinished)

    try:
        with cache_refusals(path):
            write_whole(path, fill)
    except UserError:
        raise
    except Exception as error:  # names, certificates and networks fail in many ways
        raise _refused(file, error) from error
    return path


def version_of(file: RemoteFile, timeout: float) -> str:
    """Ask the server for the version of a file's content, its ETag; "" where it gives none. Raises any error."""
    return get_hf_file_metadata(file.url, token=False, timeout=timeout).etag or ""


def _refused(file: RemoteFile, error: Exception) -> InputError:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (404, 410):
            return InputError(f"{file.name}: there is no such file on the server", "Correct the address")
        if status in (401, 403):
            return InputError(f"{file.name}: the server asks for permission", "Fetch it yourself and give its path")
        return InputError(f"{file.name}: the server answers with {status}", AGAIN)
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{file.name}: cannot be fetched ({why})", AGAIN)
