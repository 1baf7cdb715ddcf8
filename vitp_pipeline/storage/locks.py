"""One task owns a folder: a file `lock`, held through the kernel and signed by its owner.

The kernel's lock (flock) is free the moment its holder dies, but some network file systems keep it on one machine only,
and some have none. So the owner also writes its name into the file, and a heartbeat every few seconds. A lock that
another machine has signed counts as abandoned after `STALE` seconds without a heartbeat, measured with this machine's
clock alone. If that is wrong (the task was only suspended), the first owner notices before it commits anything:
`Lock.check`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vitp_pipeline.errors import CorruptError, LockedError
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.runtime.signals import stop_wanted, stopped
from vitp_pipeline.storage.atomic_files import SETTLE, refusals
from vitp_pipeline.storage.fs_ops import make_folder, open_in_place, overwrite, remove
from vitp_pipeline.storage.layout import open_plain

BEAT = 15.0
"""Seconds between heartbeats."""
STALE = 60.0
"""Seconds without one, after which another machine's lock is taken over."""
LONG_AGO = 15 * 60.0
"""So old a file, by its date, needs no watching: clocks of one cluster do not differ by that."""
_PROBES = 3
"""Attempts to take a lock, 50 ms apart: another process may just be probing it with `is_locked`."""
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass(frozen=True)
class Signature:
    """The text of a lock, and when it was written, in ns; 0 = unknown."""

    text: str
    date: int = 0

    def __str__(self) -> str:
        name = (self.text.splitlines() or ["unknown"])[0]
        return f"{name}, last heartbeat {max(0, round(self.age))} s ago" if self.machine and self.date else name

    @property
    def age(self) -> float:
        """Seconds since then; 0 if unknown."""
        return time.time() - self.date / 1e9 if self.date else 0.0

    @property
    def machine(self) -> str:
        """ "" where the text does not say it."""
        match = re.search(r"^machine (\S+) token ", self.text, re.MULTILINE)
        return match[1] if match else ""

    @property
    def ended(self) -> bool:
        return " ended " in self.text


class Lock(ABC):
    """A lock that is held.

    Args:
        path: of the lock, in the folder that it is for.
        machine: among whose processes a number means one process.
    """

    unwell: tuple[type[Exception], ...]
    """Errors that say nothing about the lock."""

    def __init__(self, path: Path, machine: str) -> None:
        self.path, self._machine, self._token, self._beats = path, machine, uuid.uuid4().hex, 0

    @abstractmethod
    def read(self) -> Signature:
        """Read who holds it now. Raises FileNotFoundError."""

    @abstractmethod
    def _write(self, signature: bytes) -> None: ...

    @abstractmethod
    def _remove(self) -> None: ...

    def sign(self, state: str = "beat") -> None:
        self._write(self._signature(state))

    def check(self) -> None:
        """Raise LockedError when another task has taken over or removed this lock."""
        try:
            owner = self.read()
        except FileNotFoundError:
            owner = Signature("")
        except self.unwell:
            return
        if not self._is_own(owner):
            whose = f"another task has taken over ({owner})" if owner.text else "its lock was removed"
            raise LockedError(f"{self.path.parent}: {whose}", "Nothing more is written here; let the other one finish")

    @contextmanager
    def signed(self) -> Iterator[Lock]:
        """Sign while the block runs, then remove the lock; after a failure leave it as a trace for `vitp status`,
        marked as held by nobody.
        """
        ended = threading.Event()
        signer = threading.Thread(target=self._keep_signing, args=(ended,), daemon=True)
        signer.start()
        failed = True
        try:
            yield self
            failed = False
        finally:
            ended.set()
            signer.join()
            with contextlib.suppress(OSError, CorruptError, *self.unwell):
                if self._is_own(self.read()):
                    if failed:
                        self.sign("ended")
                    else:
                        self._remove()

    def _keep_signing(self, ended: threading.Event) -> None:
        """Sign until the lock is given back, or lost."""
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError, CorruptError, *self.unwell):
                if not self._is_own(self.read()):
                    return
                self.sign()

    def _is_own(self, signature: Signature) -> bool:
        return f" token {self._token} " in signature.text

    def _signature(self, state: str = "beat") -> bytes:
        self._beats += 1
        return (
            f"host {socket.gethostname()}, process {os.getpid()}\n"
            f"machine {self._machine} token {self._token} {state} {self._beats:09d}\n"
        ).encode()


class _FileLock(Lock):
    unwell = (OSError,)

    def __init__(self, path: Path, file: int) -> None:
        super().__init__(path, _machine())
        self._file = file

    def read(self) -> Signature:
        return _read(self.path)

    def _write(self, signature: bytes) -> None:
        overwrite(self.path, self._file, signature)

    def _remove(self) -> None:
        remove(self.path)


def _read(path: Path) -> Signature:
    with open_plain(path) as file:  # reopened: network file systems then refresh the content
        return Signature(file.read().decode(errors="replace"), os.fstat(file.fileno()).st_mtime_ns)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[Lock]:
    """Hold an exclusive lock while the block runs; for a file of a run see `RunStore.locked`.

    Args:
        wait: watches for up to `STALE` seconds whether another machine's lock is alive; False takes it for alive unless
            it is old.
    Raises:
        LockedError: another task holds it; the message names its host and process.
    """
    file = _acquire(path, wait)
    lock = _FileLock(path, file)
    try:
        own = lock.read()
        with refusals(path):
            lock.sign()
        if own.machine not in ("", _machine()):
            time.sleep(SETTLE)
            lock.check()
        with lock.signed():
            yield lock
    finally:
        os.close(file)


def is_locked(path: Path) -> bool:
    """Tell if somebody holds the lock now; of another machine, if it signed lately by this machine's clock."""
    try:
        owner = _read(path)
        with open_plain(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed at once: `locked` knows of this moment
                known_free = owner.machine in ("", _machine())
            except BlockingIOError:
                return True
            except OSError:
                known_free = False
    except FileNotFoundError:
        return False
    return not (known_free or owner.ended) and owner.age < 2 * STALE


def _acquire(path: Path, wait: bool) -> int:
    """Open and lock the file of a lock that nobody else holds."""
    refused = 0
    while True:
        with refusals(path):
            make_folder(path.parent)
            file, new = _open(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            flocked = True
        except BlockingIOError as error:
            refused += 1
            holder = Signature(os.pread(file, 4096, 0).decode(errors="replace"), os.fstat(file).st_mtime_ns)
            os.close(file)
            if refused < _PROBES:
                time.sleep(0.05)
                continue
            raise at_work(path, holder) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(file)
                raise
            flocked = False
        try:
            # its last owner may have removed the file since it was opened: then this lock excludes no one
            if path.stat().st_ino != os.fstat(file).st_ino:
                raise FileNotFoundError
            owner = _read(path)
            proven = flocked and owner.machine in ("", _machine())  # then the kernel has freed it
            silent = owner.age > (LONG_AGO if wait else 2 * STALE)
            if not (new or proven or owner.ended or silent):
                see_dead(path, owner, lambda: _read(path), wait)
        except FileNotFoundError:
            os.close(file)
            continue
        except BaseException:
            os.close(file)
            raise
        return file


def _open(path: Path) -> tuple[int, bool]:
    """(file, whether it is new)."""
    try:
        return open_in_place(path, os.O_EXCL), True
    except FileExistsError:
        return open_in_place(path), False


def see_dead(
    path: Path,
    owner: Signature,
    read: Callable[[], Signature],
    wait: bool,
    is_over: Callable[[Signature], bool] = lambda owner: owner.ended,
) -> None:
    """Watch an owner on another machine; return when its heartbeat stops.

    Args:
        read: reads who holds the lock now. is_over: tells if an owner holds it no longer.
    Raises:
        LockedError: it is alive.
        FileNotFoundError: it has given the lock back.
    """
    if not wait:
        raise at_work(path, owner)
    say(f"{path.parent}: locked by {owner}; waiting up to {STALE:.0f} s for its heartbeat")
    until = time.monotonic() + STALE
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE / 20))
        if stop_wanted():
            raise stopped("it was waiting for a lock")
        now = read()
        if is_over(now):
            return
        if now != owner:
            raise at_work(path, now)
    say(f"{path.parent}: no heartbeat; taking over")


def at_work(path: Path, owner: Signature) -> LockedError:
    return LockedError(f"{path.parent}: another task is at work here ({owner})", "Let it finish")


@cache
def _machine() -> str:
    """Identify this machine until it reboots: containers on it share the name, and its flocks."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()
