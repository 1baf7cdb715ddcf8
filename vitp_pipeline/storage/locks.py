"""One task owns a folder: a file `lock`, held through the kernel and signed by its owner.

The kernel's lock (flock) is free the moment its holder dies, but some network file systems keep it on one machine only,
and some have none. So the owner also writes its name into the file and a sign of life every few seconds. A lock that
another machine has signed counts as left behind once it shows no sign of life for `STALE` seconds, watched with this
machine's clock alone. Should that be wrong (a task that was suspended), the first owner notices before it commits
anything: `Lock.check`.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vitp_pipeline.errors import CorruptError, LockedError
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.runtime.signals import stop_wanted, stopped
from vitp_pipeline.storage.atomic_files import SETTLE, refusals
from vitp_pipeline.storage.backend import mirror_of
from vitp_pipeline.storage.fs_ops import make_folder, open_in_place, overwrite, remove
from vitp_pipeline.storage.layout import open_plain

if TYPE_CHECKING:
    from vitp_pipeline.storage.store_locks import StoreLock

BEAT = 15.0
"""Seconds between signs of life."""
STALE = 60.0
"""Seconds without one, after which another machine's lock is taken over."""
LONG_AGO = 15 * 60.0
"""So old a file, by its date, needs no watching: clocks of one cluster do not differ by that."""
_PROBES = 3
"""How often a lock is asked for, 50 ms apart: somebody may have looked with `is_locked` at just that moment."""
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class Lock:
    """A lock that is held. Made by `locked`."""

    def __init__(self, path: Path, file: int) -> None:
        self.path, self._file, self._token, self._beats = path, file, uuid.uuid4().hex, 0
        self._ended = threading.Event()

    def check(self) -> None:
        """Raises LockedError when another task has taken this lock over, or somebody has removed its file."""
        try:
            if self._is_own():
                return
            owner = _Signature.read(self.path)
        except FileNotFoundError:
            owner = None
        except OSError:
            return  # an unwell file system says nothing about the lock
        whose = f"another task has taken over ({owner})" if owner else "its lock was removed"
        raise LockedError(f"{self.path.parent}: {whose}", "Nothing more is written here; let the other one finish")

    def sign(self, state: str = "beat") -> None:
        self._beats += 1
        content = (
            f"host {socket.gethostname()}, process {os.getpid()}\n"
            f"machine {_machine()} token {self._token} {state} {self._beats:09d}\n"
        ).encode()
        overwrite(self.path, self._file, content)

    def keep_signing(self) -> None:
        """Signs until the lock is given back, or lost."""
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError, CorruptError):
                if not self._is_own():
                    return
                self.sign()

    def give_back(self, failed: bool) -> None:
        """Removes the file; after a failure leaves it as a trace for `vitp status`, marked as held by nobody."""
        self._ended.set()
        with contextlib.suppress(OSError, CorruptError):
            if self._is_own():
                if failed:
                    self.sign("ended")
                else:
                    remove(self.path)

    def _is_own(self) -> bool:
        return f" token {self._token} " in _Signature.read(self.path).text


@dataclass(frozen=True)
class _Signature:
    """What a lock file says, and when it was written."""

    text: str
    date: int

    @staticmethod
    def read(path: Path) -> _Signature:
        with open_plain(path) as file:  # opened anew: network file systems then ask anew
            return _Signature(file.read().decode(errors="replace"), os.fstat(file.fileno()).st_mtime_ns)

    def __str__(self) -> str:
        name = (self.text.splitlines() or ["unknown"])[0]
        return f"{name}, last sign of life {max(0, round(self.age))} s ago" if self.machine else name

    @property
    def age(self) -> float:
        return time.time() - self.date / 1e9

    @property
    def machine(self) -> str:
        """ "" where the file does not say it."""
        match = re.search(r"^machine (\S+) token ", self.text, re.MULTILINE)
        return match[1] if match else ""

    @property
    def ended(self) -> bool:
        return " ended " in self.text


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[Lock | StoreLock]:
    """Holds an exclusive lock while the block runs.

    Args:
        wait: watches for up to `STALE` seconds whether another machine's lock is alive; False takes it for alive unless
            it is old.
    Raises:
        LockedError: another task holds it; the message names its host and process.
    """
    if (mirror := mirror_of(path)) is not None:
        from vitp_pipeline.storage.store_locks import locked_on

        with locked_on(mirror, path, wait) as lock_there:
            yield lock_there
        return
    file = _acquire(path, wait)
    lock = Lock(path, file)
    try:
        own = _Signature.read(path)
        alone = not own.text
        with refusals(path):
            lock.sign()
        if not alone and own.machine not in ("", _machine()):
            time.sleep(SETTLE)
            lock.check()
        signer = threading.Thread(target=lock.keep_signing, daemon=True)
        signer.start()
        try:
            yield lock
        except BaseException:
            lock.give_back(failed=True)
            raise
        lock.give_back(failed=False)
    finally:
        os.close(file)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock now; of another machine, whether it signed lately by this machine's clock."""
    if (mirror := mirror_of(path)) is not None:
        from vitp_pipeline.storage.store_locks import is_locked_on

        return is_locked_on(mirror, path)
    try:
        owner = _Signature.read(path)
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
    """The open file of a lock that nobody else holds."""
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
            holder = _Signature(os.pread(file, 4096, 0).decode(errors="replace"), os.fstat(file).st_mtime_ns)
            os.close(file)
            if refused < _PROBES:
                time.sleep(0.05)
                continue
            raise _at_work(path, holder) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(file)
                raise
            flocked = False
        try:
            # its last owner may have removed the file since it was opened: then this lock keeps nobody out
            if path.stat().st_ino != os.fstat(file).st_ino:
                raise FileNotFoundError
            owner = _Signature.read(path)
            proven = flocked and owner.machine in ("", _machine())  # then the kernel has freed it
            if not (new or proven or owner.ended):
                _see_dead(path, owner, wait)
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


def _see_dead(path: Path, owner: _Signature, wait: bool) -> None:
    """Returns when an owner that the kernel does not vouch for shows no sign of life.

    Raises:
        LockedError: it is alive.
        FileNotFoundError: it has given the lock back.
    """
    if owner.age > LONG_AGO or (not wait and owner.age > 2 * STALE):
        return
    if not wait:
        raise _at_work(path, owner)
    say(f"{path.parent}: locked by {owner}; watching for {STALE:.0f} s whether that task is alive")
    until = time.monotonic() + STALE
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE / 20))
        if stop_wanted():
            raise stopped("it was waiting for a lock")
        now = _Signature.read(path)
        if now.ended:
            return
        if now != owner:
            raise _at_work(path, now)
    say(f"{path.parent}: no sign of life; taking over")


def _at_work(path: Path, owner: _Signature) -> LockedError:
    return LockedError(f"{path.parent}: another task is at work here ({owner})", "Let it finish")


@cache
def _machine() -> str:
    """What tells this machine, until it is started anew, from others: containers on it share it and its flocks."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()
