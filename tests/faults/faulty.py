"""Faults at a step of `storage.fs_ops`: what watches the steps of a task, and makes one of them fail."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vitp_pipeline.storage import fs_ops
from vitp_pipeline.storage.fs_ops import Step


class Fault(StrEnum):
    KILL = "kill"
    """The process is killed (-9) just before the step."""
    FULL = "full"
    """The disk is full from the step on: half of a write fits, nothing else that needs room does."""
    TORN = "torn"
    """Half of the bytes are written, then the process is killed."""
    POWER = "power"
    """Of all that was not synced only half has reached the disk; the process is killed."""


NEEDS_ROOM = (Step.MAKE_FOLDER, Step.OPEN, Step.WRITE, Step.SYNC, Step.RENAME, Step.LINK)


@dataclass(frozen=True)
class Point:
    """A step of a task: the n-th of this kind on a file (`~` stands for the ending of temporary files).

    Attributes:
        size: bytes to be written.
        unsynced: whether any file has bytes that were not synced.
    """

    step: Step
    file: str
    number: int
    size: int = 0
    unsynced: bool = False

    @property
    def faults(self) -> list[Fault]:
        """Those that differ from each other here."""
        found = [Fault.KILL]
        if self.step in NEEDS_ROOM:
            found.append(Fault.FULL)
        if self.step is Step.WRITE and self.size > 1:
            found.append(Fault.TORN)
        if self.unsynced:
            found.append(Fault.POWER)
        return found


@dataclass(frozen=True)
class Case:
    """A fault at a point."""

    point: Point
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault} at {self.point.step} {self.point.file} #{self.point.number}"


class Watcher:
    """Notes the steps on the files of a run, and makes one of them fail.

    Args:
        notes: where the steps go, a JSON list a line.
    """

    def __init__(self, run: Path, case: Case | None = None, notes: Path | None = None) -> None:
        self.run, self.case, self.notes = run, case, notes
        self.seen: Counter[tuple[Step, str]] = Counter()
        self.unsynced: dict[int, int] = {}
        """Bytes that are safe, by inode."""
        self.full = False

    def __call__(self, step: Step, path: Path, content: bytes, write: Callable[[bytes], object]) -> None:
        if not path.is_relative_to(self.run):
            return
        if self.full and step in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        file = _name(path, self.run)
        point = Point(step, file, self.seen[step, file], len(content), bool(self.unsynced))
        self.seen[step, file] += 1
        if self.notes:
            with self.notes.open("a", encoding="utf-8") as out:
                out.write(json.dumps([point.step, point.file, point.number, point.size, point.unsynced]) + "\n")
        if step is Step.WRITE:
            self.unsynced.setdefault(path.stat().st_ino, path.stat().st_size)
        if self.case and (step, file, point.number) == (
            self.case.point.step,
            self.case.point.file,
            self.case.point.number,
        ):
            self._fail(self.case.fault, step, path, content, write)
        if step is Step.SYNC:
            self.unsynced.pop(path.stat().st_ino, None)

    def _fail(self, fault: Fault, step: Step, path: Path, content: bytes, write: Callable[[bytes], object]) -> None:
        if step is Step.WRITE and fault in (Fault.FULL, Fault.TORN):
            write(content[: len(content) // 2])
        if fault is Fault.FULL:
            self.full = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if fault is Fault.POWER:
            for file in self.run.rglob("*"):
                if (safe := self.unsynced.get(file.stat().st_ino)) is not None and file.is_file():
                    os.truncate(file, min(safe, size := file.stat().st_size) + max(0, size - safe) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def note_strays(run: Path, file: Path) -> None:
    """Has this process note in `file` what Python does to the files of a run elsewhere than in `storage.fs_ops`."""
    changes = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in changes and not (event == "open" and (arguments[2] or 0) & writing):
            return
        if not str(arguments[0]).startswith(f"{run}/"):
            return
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_filename != fs_ops.__file__:
            frame = frame.f_back
        if frame is None:
            with file.open("a", encoding="utf-8") as out:
                out.write(f"{event} {arguments}\n")

    sys.addaudithook(hook)


def read_points(notes: Path) -> list[Point]:
    lines = (json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines())
    return [Point(Step(step), *rest) for step, *rest in lines]


def _name(path: Path, run: Path) -> str:
    name = path.relative_to(run).as_posix()
    return re.sub(r"\.[0-9a-f]{8}-[0-9]+-[0-9]+\.tmp(?=[./]|$)", "~", name)
