"""Read ahead of the model and write behind it, in order and with a bounded queue.

Exceptions are raised in the thread that asked for the work. Leaving the `with` block waits for work that has started
and drops the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def _one_thread() -> None:
    """Torch's operators in such a thread use no others: those are the model's."""
    import torch

    torch.set_num_threads(1)


class _Beside:
    """Threads that end with a block."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name, _one_thread)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class Prefetcher(_Beside, Generic[Item, Result]):
    """Reads items before they are asked for, at most `most` beyond the one that is being worked on.

        with Prefetcher(read, items, 2) as prefetcher:
            for item, found in prefetcher:
                found.result()  # or what `read` raised

    Args:
        read: called with each item, in `threads` other threads.
    """

    def __init__(self, read: Callable[[Item], Result], items: Iterable[Item], most: int, threads: int = 1) -> None:
        super().__init__(threads, "reader")
        self._read, self._items, self._most = read, iter(items), most

    def __enter__(self) -> Prefetcher[Item, Result]:
        return self

    def __iter__(self) -> Iterator[tuple[Item, Future[Result]]]:
        begun: deque[tuple[Item, Future[Result]]] = deque()
        for item in self._items:
            begun.append((item, self._threads.submit(self._read, item)))
            if len(begun) > self._most:
                yield begun.popleft()
        while begun:
            yield begun.popleft()


class WriteQueue(_Beside, Generic[Result]):
    """Does pieces of work one after the other in another thread, of which at most `most` are unfinished.

    with WriteQueue(2) as queue:
        queue.add(write, image)
        results = queue.finish()
    """

    def __init__(self, most: int) -> None:
        super().__init__(1, "writer")
        self._most = most
        self._unfinished: deque[Future[Result]] = deque()
        self._results: list[Result] = []

    def __enter__(self) -> WriteQueue[Result]:
        return self

    def add(self, work: Callable[..., Result], *arguments: object) -> None:
        """Queue a piece of work; wait while the queue is full. Raises what an earlier piece raised."""
        while len(self._unfinished) >= self._most or (self._unfinished and self._unfinished[0].done()):
            self._results.append(self._unfinished.popleft().result())
        self._unfinished.append(self._threads.submit(work, *arguments))

    def finish(self) -> list[Result]:
        """Wait for all pieces and return their results in order. Raises what a piece raised."""
        while self._unfinished:
            self._results.append(self._unfinished.popleft().result())
        return self._results
