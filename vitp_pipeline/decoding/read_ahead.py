"""Fetch files that will be read soon, many at once: a store answers each request late, but a hundred as fast as one.

    with reading_ahead(paths, read):
        for path in paths:
            content = fetched(path) or read(path)

Who reads need not know: `archives.read_bytes` takes what is fetched. At most `AHEAD` files are held, or on their way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

AHEAD = 16
"""Files fetched at once, before the one that is read."""

_open: list[_Fetcher] = []
"""Of this process, those whose block has not ended."""


@contextmanager
def reading_ahead(paths: Iterable[Path], read: Callable[[Path], bytes]) -> Iterator[None]:
    """Fetch these files in the order in which they will be read, while the block runs. Each is handed out once.

    Args:
        read: of a file; may raise, as the one who asks for the file will see.
    """
    with ThreadPoolExecutor(AHEAD, "fetcher") as threads:
        fetcher = _Fetcher(list(dict.fromkeys(paths)), read, threads)
        _open.append(fetcher)
        try:
            yield
        finally:
            _open.remove(fetcher)
            threads.shutdown(wait=True, cancel_futures=True)


def fetched(path: Path) -> Future[bytes] | None:
    """Return the content of a file that was asked for, or will be; None of other files."""
    for fetcher in reversed(_open):
        if (found := fetcher.take(path)) is not None:
            return found
    return None


class _Fetcher:
    """Files on their way: the next `AHEAD` behind the one that was read last."""

    def __init__(self, paths: list[Path], read: Callable[[Path], bytes], threads: ThreadPoolExecutor) -> None:
        self._paths, self._read, self._threads = paths, read, threads
        self._places = {path: place for place, path in enumerate(paths)}
        self._begun: dict[int, Future[bytes]] = {}
        self._next, self._lock = 0, threading.Lock()
        self._begin(AHEAD)

    def take(self, path: Path) -> Future[bytes] | None:
        place = self._places.get(path)
        if place is None:
            return None
        with self._lock:
            self._begin(place + AHEAD)
            for passed in [number for number in self._begun if number < place - AHEAD]:  # nobody asked for them
                del self._begun[passed]
            return self._begun.pop(place, None)

    def _begin(self, until: int) -> None:
        while self._next < min(until, len(self._paths)):
            self._begun[self._next] = self._threads.submit(self._read, self._paths[self._next])
            self._next += 1
