"""One task owns a folder of a run on an object store: the object `lock`, signed by its owner.

There is no kernel lock. The task that creates the object owns the folder (`If-None-Match`, so only one does), signs
it again every few seconds, and removes it. One without a heartbeat for `locks.STALE` seconds, measured with this
machine's clock alone, is taken over, at once when its owner was a process of this machine that is gone. Should two
tasks take one over in the same moment, or one wake that was suspended, `check` notices before anything is committed.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitp_pipeline.errors import StorageError
from vitp_pipeline.storage import locks
from vitp_pipeline.storage.atomic_files import SETTLE
from vitp_pipeline.storage.locks import Lock, Signature
from vitp_pipeline.storage.object_client import ObjectClient


class _ObjectLock(Lock):
    unwell = (StorageError,)

    def __init__(self, client: ObjectClient, name: str, path: Path) -> None:
        super().__init__(path, _machine())
        self._client, self._name = client, name

    def acquire(self, wait: bool) -> None:
        """Raise LockedError when another task holds it, FileNotFoundError when that one has just given it back."""
        if self._client.create(self._name, self._signature()):
            self.check()  # a store that knows no conditions lets the last one win
            return
        if not _is_over(owner := self.read()):
            locks.see_dead(self.path, owner, self.read, wait, _is_over)
        self.sign()
        time.sleep(SETTLE)
        self.check()

    def read(self) -> Signature:
        return _read(self._client, self._name)

    def _write(self, signature: bytes) -> None:
        self._client.write(self._name, signature)

    def _remove(self) -> None:
        self._client.delete(self._name)


@contextmanager
def locked(client: ObjectClient, name: str, path: Path, wait: bool) -> Iterator[Lock]:
    """Hold the lock that an object is while the block runs; as `locks.locked`.

    Args:
        path: of the lock, where people look for it.
    """
    lock = _ObjectLock(client, name, path)
    while True:
        with contextlib.suppress(FileNotFoundError):
            lock.acquire(wait)
            break
    with lock.signed():
        yield lock


def is_locked(client: ObjectClient, name: str) -> bool:
    """Tell if somebody holds the lock now: has signed it lately, by the store's date and this machine's clock."""
    try:
        owner = _read(client, name)
        return not _is_over(owner) and time.time() - client.date(name) < 2 * locks.STALE
    except FileNotFoundError:
        return False


def _read(client: ObjectClient, name: str) -> Signature:
    return Signature(client.read(name).decode(errors="replace"))


def _is_over(owner: Signature) -> bool:
    """Tell if an owner has given the lock back after a failure, or was a process here that is gone."""
    if owner.ended:
        return True
    process = re.search(r"process ([0-9]+)$", owner.text.partition("\n")[0])
    if not process or owner.machine != _machine():
        return False
    try:
        os.kill(int(process[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _machine() -> str:
    """Name the processes among which a number means one process: those of this machine and this container on it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{socket.gethostname()}-{uuid.getnode()}"
