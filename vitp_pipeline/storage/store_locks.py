"""One task owns a folder of a run on an object store: the object `lock`, signed by its owner.

No kernel stands behind it. Whoever makes the object owns the folder (`If-None-Match`, so of several tasks one), signs
it again every few seconds, and removes it. One that shows no sign of life for `STALE` seconds, watched with this
machine's clock alone, is taken over, at once when its owner was a process of this machine that is gone. Should two
tasks take one over in the same moment, or one wake that was suspended, `check` notices before anything is committed.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitp_pipeline.errors import LockedError, StorageError
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.runtime.signals import stop_wanted, stopped
from vitp_pipeline.storage import locks
from vitp_pipeline.storage.atomic_files import SETTLE

if TYPE_CHECKING:
    from vitp_pipeline.storage.object_mirror import Mirror


class StoreLock:
    """A lock that is held. Made by `locked_on`."""

    def __init__(self, mirror: Mirror, path: Path) -> None:
        self.path, self._mirror = path, mirror
        self._token, self._beats, self._ended = uuid.uuid4().hex, 0, threading.Event()

    def check(self) -> None:
        """Raises LockedError when another task has taken this lock over, or somebody has removed it."""
        try:
            owner = self._mirror.read(self.path).decode(errors="replace")
        except FileNotFoundError:
            owner = ""
        except StorageError:
            return  # an unwell store says nothing about the lock
        if f" token {self._token} " in owner:
            return
        whose = f"another task has taken over ({_name(owner)})" if owner else "its lock was removed"
        raise LockedError(f"{self.path.parent}: {whose}", "Nothing more is written here; let the other one finish")

    def acquire(self, wait: bool) -> None:
        """Raises LockedError when another task holds it, FileNotFoundError when that one has just given it back."""
        if self._mirror.create(self.path, self._signature()):
            self.check()  # a store that knows no conditions lets the last one win
            return
        owner = self._mirror.read(self.path)
        if not _is_over(owner):
            self._see_dead(owner, wait)
        self._mirror.write(self.path, self._signature())
        time.sleep(SETTLE)
        self.check()

    def _see_dead(self, owner: bytes, wait: bool) -> None:
        if not wait:
            raise self._at_work(owner)
        say(
            f"{self.path.parent}: locked by {_name(owner.decode(errors='replace'))}; watching for {locks.STALE:.0f} s "
            "whether that task is alive"
        )
        until = time.monotonic() + locks.STALE
        while time.monotonic() < until:
            time.sleep(min(locks.BEAT / 4, locks.STALE / 20))
            if stop_wanted():
                raise stopped("it was waiting for a lock")
            if (now := self._mirror.read(self.path)) != owner:
                if _is_over(now):
                    return
                raise self._at_work(now)
        say(f"{self.path.parent}: no sign of life; taking over")

    def keep_signing(self) -> None:
        """Signs until the lock is given back, or lost."""
        while not self._ended.wait(locks.BEAT):
            with contextlib.suppress(StorageError):
                try:
                    self.check()
                except LockedError:
                    return
                self._mirror.write(self.path, self._signature())

    def give_back(self, failed: bool) -> None:
        """Removes the object; after a failure leaves it as a trace for `vitp status`, marked as held by nobody."""
        with contextlib.suppress(StorageError, LockedError):
            self.check()
            if failed:
                self._mirror.write(self.path, self._signature("ended"))
            else:
                self._mirror.delete(self.path)

    def end(self) -> None:
        self._ended.set()

    def _signature(self, state: str = "beat") -> bytes:
        self._beats += 1
        return (
            f"host {socket.gethostname()}, process {os.getpid()}\n"
            f"machine {_here()} token {self._token} {state} {self._beats:09d}\n"
        ).encode()

    def _at_work(self, owner: bytes) -> LockedError:
        name = _name(owner.decode(errors="replace"))
        return LockedError(f"{self.path.parent}: another task is at work here ({name})", "Let it finish")


@contextmanager
def locked_on(mirror: Mirror, path: Path, wait: bool) -> Iterator[StoreLock]:
    """As `locks.locked`."""
    lock = StoreLock(mirror, path)
    while True:
        with contextlib.suppress(FileNotFoundError):
            lock.acquire(wait)
            break
    signer = threading.Thread(target=lock.keep_signing, daemon=True)
    signer.start()
    try:
        yield lock
    except BaseException:
        lock.end()
        signer.join()
        lock.give_back(failed=True)
        raise
    lock.end()
    signer.join()
    lock.give_back(failed=False)


def is_locked_on(mirror: Mirror, path: Path) -> bool:
    """Whether somebody holds the lock now: has signed it lately, by the store's date and this machine's clock."""
    try:
        return not _is_over(mirror.read(path)) and time.time() - mirror.stamp(path)[1] / 1e9 < 2 * locks.STALE
    except FileNotFoundError:
        return False


def _is_over(owner: bytes) -> bool:
    """Whether its owner has given the lock back after a failure, or was a process here that is gone."""
    text = owner.decode(errors="replace")
    if " ended " in text:
        return True
    process = re.search(r"process ([0-9]+)$", text.partition("\n")[0])
    if not process or f"machine {_here()} " not in text:
        return False
    try:
        os.kill(int(process[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _name(owner: str) -> str:
    return (owner.splitlines() or ["unknown"])[0]


def _here() -> str:
    """What tells the processes among which a number means one process: this machine and this container on it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{socket.gethostname()}-{uuid.getnode()}"
