"""A hub on this machine: the answers of the Hugging Face Hub that a download needs, and those of a plain server.

/OWNER/REPO/resolve/REVISION/FILE   ETag, X-Repo-Commit; Range
/files/FILE                         as any server has it: ETag, Range
"""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

COMMITS = {"v1": "b" * 40}
"""Of tags. That of main changes with the files."""


@dataclass
class Hub:
    """What the server holds, and how it behaves.

    Attributes:
        files: contents, by "OWNER/REPO/FILE" or "files/FILE"; at a revision other than main by "…@REVISION".
        gated: repositories that ask for permission.
        cuts: of so many of the next downloads the connection is cut in the middle; those after the first send nothing.
        status: what everything is answered with, unless it is 200.
        asked: method and path of every request.
        holding: an event that downloads wait for.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cuts: int = 0
    status: int = 200
    asked: list[tuple[str, str]] = field(default_factory=list)
    holding: threading.Event | None = None
    url: str = ""

    def downloads(self) -> int:
        """Count requests for contents, not for what the library wants to know besides."""
        return sum(method == "GET" and not path.startswith("api/") for method, path in self.asked)

    def commit(self, repo: str) -> str:
        """The commit of a repository's branch main."""
        own = sorted(item for item in self.files.items() if item[0].startswith(f"{repo}/"))
        return hashlib.sha1(repr(own).encode()).hexdigest()


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _refuse(self, status: int, code: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, whole: bool) -> None:
            path = unquote(self.path.partition("?")[0]).lstrip("/")
            hub.asked.append((self.command, path))
            if hub.status != 200:
                return self._refuse(hub.status)
            name, commit = path, ""
            if "/resolve/" in path:
                repo, _, rest = path.partition("/resolve/")
                revision, _, file = rest.partition("/")
                if repo in hub.gated:
                    return self._refuse(403, "GatedRepo")
                if not any(key.startswith(f"{repo}/") for key in hub.files):
                    return self._refuse(404, "RepoNotFound")
                commits = COMMITS | {"main": hub.commit(repo)}
                branch = next((b for b, c in commits.items() if revision in (b, c)), None)
                if branch is None:
                    return self._refuse(404, "RevisionNotFound")
                commit, name = commits[branch], f"{repo}/{file}" + ("" if branch == "main" else f"@{branch}")
                if name not in hub.files:
                    return self._refuse(404, "EntryNotFound")
            if name not in hub.files:
                return self._refuse(404)
            return self._send(hub.files[name], commit, whole)

        def _send(self, content: bytes, commit: str, whole: bool) -> None:
            first = 0
            if asked := self.headers.get("Range"):
                first = int(asked.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if first else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if commit:
                self.send_header("X-Repo-Commit", commit)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if not whole:
                return
            if hub.holding is not None:
                hub.holding.wait(30)
            if hub.cuts:
                hub.cuts -= 1
                self.wfile.write(b"" if first else content[: len(content) // 2])
                self.close_connection = True
                return
            self.wfile.write(content[first:])

    return Handler


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Readers that are gone are what the tests are about."""


@contextmanager
def loopback_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.holding is not None:
            hub.holding.set()
        server.shutdown()
        server.server_close()
        thread.join()
