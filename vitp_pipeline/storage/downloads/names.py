"""Names of remote files, as recipes and flags give them:

    hf:OWNER/REPO/FILE            of the Hugging Face Hub, at its branch main
    hf:OWNER/REPO/FILE@REVISION   at a branch, a tag or a commit
    https://HOST/PATH             of any server; http:// of this machine alone

Behind each `#sha256=` and 64 hex digits may follow, which the file must have.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from vitp_pipeline.errors import UsageError

HUB = "hf:"
SYNTAX = "Write hf:OWNER/REPO/FILE, hf:OWNER/REPO/FILE@REVISION or https://HOST/PATH, with #sha256=DIGEST to pin it"
_REMOTE = re.compile(r"hf:|https?://", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"(?!\.+$)[\w.-]+")
"""An owner, a repository, or a folder or file in it."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub or on a server.

    Attributes:
        name: as it was given, without the digest.
        file: its name alone, in which readers look for .pth, .safetensors …
        sha256: the digest that it must have; "" = any.
        repo, path, revision: of the Hub; empty elsewhere.
        url: of another server; empty for the Hub.
    """

    name: str
    file: str
    sha256: str = ""
    repo: str = ""
    path: str = ""
    revision: str = ""
    url: str = ""

    @property
    def on(self) -> Literal["hub", "web"]:
        """Return the kind of the name."""
        return "web" if self.url else "hub"

    @property
    def is_fixed(self) -> bool:
        """True if the name means one content for ever: a commit."""
        return _COMMIT.fullmatch(self.revision) is not None


def is_remote(text: str) -> bool:
    """Tell if a text of a recipe names a remote file (or, of the Hub, a whole repository), and no path."""
    return _REMOTE.match(text) is not None


def names_repository(text: str) -> bool:
    """Tell if a text names a whole repository of the Hub: hf:OWNER/REPO, with or without @REVISION."""
    return text.startswith(HUB) and text.partition("@")[0].count("/") < 2


def parse_remote(text: str) -> RemoteFile:
    """Parse the name of a remote file. Raises UsageError when it is none."""
    name, _, fragment = text.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    if fragment and not (fragment.startswith("sha256=") and re.fullmatch("[0-9a-f]{64}", digest)):
        raise UsageError(f"{text}: behind # stands no SHA-256 of 64 hex digits", SYNTAX)
    return _hub_file(text, name, digest) if name.lower().startswith(HUB) else _web_file(text, name, digest)


def _hub_file(text: str, name: str, digest: str) -> RemoteFile:
    place, at, revision = name[len(HUB) :].partition("@")
    parts = place.split("/")
    if len(parts) < 3 and all(map(_PART.fullmatch, parts)):
        raise UsageError(f"{text}: names no file of the repository", SYNTAX)
    if not all(map(_PART.fullmatch, parts)) or (at and not revision):
        raise UsageError(f"{text}: not a name of a file on the Hub", SYNTAX)
    repo, path = "/".join(parts[:2]), "/".join(parts[2:])
    return RemoteFile(name, parts[-1], digest, repo, path, revision)


def _web_file(text: str, name: str, digest: str) -> RemoteFile:
    try:
        url = urlsplit(name)
        host = url.hostname or ""
    except ValueError as error:
        raise UsageError(f"{text}: not an address ({error})", SYNTAX) from error
    file = PurePosixPath(unquote(url.path)).name
    if not host or file in ("", ".", "..") or url.path.endswith("/") or "\0" in file:
        raise UsageError(f"{text}: names no file of a server", SYNTAX)
    if url.username is not None or url.password is not None:
        raise UsageError(
            f"{url.scheme}://…@{host}{url.path}: a name with a password in it would be written into the run",
            "Fetch the file yourself, and give its path",
        )
    if url.scheme.lower() == "http" and not _is_this_machine(host):
        raise UsageError(f"{text}: http:// lets anybody on the way change the file", "Use https://, or give a path")
    return RemoteFile(name, file, digest, url=name)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
