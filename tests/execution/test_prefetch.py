"""Reading ahead and writing behind: in order, never by much, and no failure is lost."""

from __future__ import annotations

import threading
import time

import pytest

from vitp_pipeline.errors import InputError, StorageError
from vitp_pipeline.execution.prefetch import Prefetcher, WriteQueue


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("most", [0, 1, 4])
def test_what_was_read_comes_in_order_and_never_more_than_asked(most: int, threads: int) -> None:
    begun, taken = [], []

    def read(item: int) -> int:
        begun.append(item)
        assert len(begun) <= len(taken) + most + 1
        time.sleep(0.002 * (item % 3))
        return item * item

    with Prefetcher(read, range(12), most, threads) as prefetcher:
        for item, found in prefetcher:
            assert found.result() == item * item
            taken.append(item)
    assert taken == list(range(12)) == sorted(begun)


def test_a_failed_read_fails_where_it_is_asked_for_and_the_others_do_not() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise InputError("torn")
        return item

    found = []
    with Prefetcher(read, range(5), 2) as prefetcher:
        for item, future in prefetcher:
            if item == 2:
                with pytest.raises(InputError, match="torn"):
                    future.result()
            else:
                found.append(future.result())
    assert found == [0, 1, 3, 4]


def test_leaving_early_reads_no_further() -> None:
    begun, go_on = [], threading.Event()

    def read(item: int) -> None:
        begun.append(item)
        if item:
            go_on.wait(5)

    with pytest.raises(KeyError), Prefetcher(read, range(100), 3) as prefetcher:
        for _, future in prefetcher:
            future.result()
            threading.Timer(0.05, go_on.set).start()
            raise KeyError
    assert set(begun) <= {0, 1}


def test_pieces_are_done_in_order_in_one_other_thread() -> None:
    done = []

    def work(piece: int) -> int:
        time.sleep(0.002 * (piece % 3))
        done.append((piece, threading.current_thread()))
        return -piece

    with WriteQueue(3) as queue:
        for piece in range(10):
            queue.add(work, piece)
        assert queue.finish() == [-piece for piece in range(10)]
    pieces, threads = zip(*done, strict=True)
    assert list(pieces) == list(range(10))
    assert len(set(threads)) == 1 and threads[0] is not threading.current_thread()


def test_no_more_pieces_wait_than_allowed() -> None:
    go_on, added = threading.Event(), []

    def hand_over() -> None:
        with WriteQueue(2) as queue:
            for piece in range(4):
                queue.add(go_on.wait, 5)
                added.append(piece)

    thread = threading.Thread(target=hand_over)
    thread.start()
    time.sleep(0.1)
    assert added == [0, 1]
    go_on.set()
    thread.join(5)
    assert added == [0, 1, 2, 3]


def test_a_failed_piece_is_heard_of_and_what_waits_is_dropped() -> None:
    done = []

    def work(piece: int) -> None:
        if piece == 1:
            raise StorageError("the disk is full")
        time.sleep(0.02)
        done.append(piece)

    with pytest.raises(StorageError, match="full"), WriteQueue(2) as queue:
        for piece in range(50):
            queue.add(work, piece)
    assert len(done) <= 3
    with pytest.raises(StorageError), WriteQueue(2) as queue:
        queue.add(work, 1)
        queue.finish()
