"""Tasks in processes of their own, forked from one in which all that they need has run once: they start at once.

`python -m tests.faults.tasks` is that one: it reads tasks, a line each, and says how each has ended.
"""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.faults.faulty import Case, Watcher, note_strays
from tests.faults.scenarios import SCENARIOS, STAGES, make_place, perform, words

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Task:
    """Commands, run as `vitp` runs them.

    Attributes:
        commands: whole command lines.
        run: the run directory; what is written elsewhere meets no fault.
        log: where standard output and error go.
        stops, keeps: see `Scenario`.
        case: the fault that it meets.
        notes: where its steps are noted; writes that were no steps go beside, to `.strays`.
    """

    commands: tuple[tuple[str, ...], ...]
    run: Path
    log: Path
    stops: bool = False
    keeps: bool = False
    case: Case | None = None
    notes: Path | None = None

    def perform(self) -> None:
        import torch

        from vitp_pipeline.storage import locks
        from vitp_pipeline.storage.fs_ops import watched

        torch.set_num_threads(1)  # after a fork its pool is made anew, which two threads must not begin at once
        locks.BEAT = 3600.0  # a sign of life would fall between any two steps
        os.fsync = lambda file: None  # the machine stays on
        with self.log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if self.notes:
            note_strays(self.run, self.notes.with_suffix(".strays"))
        with watched(Watcher(self.run, self.case, self.notes)):
            perform(self.commands, self.stops, self.keeps)


class Server:
    """Runs tasks, one at a time."""

    def __enter__(self) -> Server:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "tests.faults.tasks"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, env=environment, cwd=ROOT)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, task: Task) -> int:
        """The exit code, or minus the signal that has killed the task."""
        self._process.stdin.write(base64.b64encode(pickle.dumps(task)) + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _serve() -> None:
    _warm()
    for line in sys.stdin.buffer:
        task = pickle.loads(base64.b64decode(line))
        if (process := os.fork()) == 0:
            os._exit(_code(task))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    os._exit(0)  # to take so many modules down in order takes long


def _code(task: Task) -> int:
    try:
        task.perform()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _warm() -> None:
    import torch

    import tests.pipeline.preload  # noqa: F401

    torch.set_num_threads(1)
    replies = os.dup(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = make_place(folder)
        commands = tuple(c for name in STAGES for c in SCENARIOS[name].commands)
        lines = [words(command, place, folder / "run") for command in commands]
        with (folder / "log").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        perform(lines)
    sys.stdout.flush()
    os.dup2(replies, 1)


if __name__ == "__main__":
    _serve()
