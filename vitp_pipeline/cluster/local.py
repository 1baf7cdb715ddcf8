"""Run a chain on this machine: one process per GPU, or per group of cores.

A task starts when its dependencies succeeded; when one fails, its dependents are skipped and the others
continue. Nothing is kept but the run itself: the same command runs what is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vitp_pipeline.cluster.commands import MAIN
from vitp_pipeline.cluster.engine import ENGINES, Engine, Handed, Work
from vitp_pipeline.cluster.plan import Chain, Job, jobs_folder
from vitp_pipeline.errors import OutputError, PartialError, UserError
from vitp_pipeline.execution.sharding import SCHEDULERS, SHARDS, array_expression
from vitp_pipeline.runtime.escaping import shell_words
from vitp_pipeline.runtime.progress import progress, say
from vitp_pipeline.runtime.signals import finishing, stop_wanted, stopped
from vitp_pipeline.storage.atomic_files import refusals
from vitp_pipeline.storage.fs_ops import make_folder

GOOD_ENDS = (0, PartialError.exit_code, OutputError.exit_code)
"""Exit codes after which the chain continues: failed images are recorded, and work with an incomplete log is
done.
"""
POLL = 0.05
GRACE = 60.0
"""Seconds for tasks that are asked to stop: they finish their image."""
ORDER = ("train-classifier", "evaluate", "classify", "generate-proposals", "merge", "predict")
"""Which of several tasks that could start does: the long one, then those that finish shards."""


@dataclass(frozen=True)
class Slot:
    """Resources of one process: GPUs, or cores without a GPU."""

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        """Return this process's environment with the slot's devices, and without any scheduler's index."""
        indices = {scheduler.index for scheduler in SCHEDULERS} | {SHARDS}
        environment = {name: value for name, value in os.environ.items() if name not in indices}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(self.cores))))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        return environment


def make_slots(workers: int | None, gpus: Sequence[str], cores: Sequence[int]) -> list[Slot]:
    """Make `workers` slots (None: one per GPU, or one), each with its share of the cores and its own or a shared GPU.

    More workers than cores share them.
    """
    count = workers or max(1, len(gpus))
    slots = []
    for number in range(count):
        share = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
        slots.append(
            Slot(
                (gpus[number % len(gpus)],) if gpus else (),
                tuple(share) or (cores[number % len(cores)],),
            )
        )
    return slots


def visible_gpus() -> list[str]:
    """List the GPUs that a child process could use, as CUDA_VISIBLE_DEVICES names them; torch is not imported."""
    if (said := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in said.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except OSError:
        return []
    return [str(n) for n, line in enumerate(done.stdout.splitlines())] if done.returncode == 0 else []


@dataclass(eq=False)
class Task:
    """A task of a job, from waiting to its end.

    Attributes:
        shard: None = of a job without shards.
        before: the tasks that must succeed first.
        code: exit code, once it has ended; LEFT_OUT if one of `before` failed.
        started: whether it has a process, or had one.
    """

    job: Job
    shard: int | None
    before: list[Task] = field(default_factory=list, repr=False)
    code: int | None = None
    started: bool = False
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.job.stage if self.shard is None else f"{self.job.stage} {self.shard}"

    @property
    def good(self) -> bool:
        return self.code in GOOD_ENDS


@dataclass(eq=False)
class _Running:
    """A running task."""

    task: Task
    slot: Slot
    process: subprocess.Popen[bytes]
    log: IO[str]
    began: float


LEFT_OUT = 1000
"""No exit code."""


def make_tasks(chain: Chain) -> list[Task]:
    """Make the tasks of a chain, each after those that it waits for."""
    tasks: list[Task] = []
    of_stage: dict[str, dict[int | None, Task]] = defaultdict(dict)
    for job in chain.jobs:
        for shard in job.shards or (None,):
            before = list(of_stage[job.all_of].values())
            if shard in of_stage[job.same_shard]:
                before.append(of_stage[job.same_shard][shard])
            of_stage[job.stage][shard] = Task(job, shard, before)
        tasks += of_stage[job.stage].values()
    return tasks


def run_chain(chain: Chain, logs: Path, slots: Sequence[Slot], show_figures: bool = True) -> list[Task]:
    """Run the remaining tasks of a chain, one process per slot; return the ended tasks for `report`.

    Args:
        show_figures: those of its last job go to standard output, else to its log.
    Raises:
        StoppedError: a signal came. It is handed on to the tasks that run, which keep what is finished; a second one
            ends them at once.
    """
    tasks, free = make_tasks(chain), list(slots)
    running: list[_Running] = []
    with refusals(logs):
        make_folder(logs)
    try:
        with finishing(), progress("submit", len(tasks), "tasks") as bar:
            while any(task.code is None for task in tasks):
                if stop_wanted():
                    _ask_to_stop(running)
                    ended = sum(task.code is not None for task in tasks)
                    raise stopped(f"{ended} of {len(tasks)} tasks have ended, the others keep what is finished")
                for task in _ready(tasks, bar.advance)[: len(free)]:
                    running.append(_start(task, free.pop(0), chain.shards, logs, show_figures))
                for work in [w for w in running if w.process.poll() is not None]:
                    running.remove(work)
                    free.append(work.slot)
                    _end(work, logs)
                    bar.advance()
                if running:
                    time.sleep(POLL)
    finally:
        _kill(running)
    return tasks


def _ready(tasks: Sequence[Task], advance: Callable[[], None]) -> list[Task]:
    """List the tasks that can start, by priority; end those that never can."""
    ready = []
    for task in tasks:
        if task.code is not None or task.started:
            continue
        if any(before.code is not None and not before.good for before in task.before):
            task.code = LEFT_OUT
            advance()
        elif all(before.good for before in task.before):
            ready.append(task)
    return sorted(ready, key=lambda task: ORDER.index(task.job.stage))


def _start(task: Task, slot: Slot, shards: int, logs: Path, show_figures: bool) -> _Running:
    words = [sys.executable, "-m", MAIN, *task.job.command]
    if task.shard is not None:
        words += ["--shard", f"{task.shard}/{shards}"]
    log, task.started = _open_log(task, logs), True
    figures = None if task.job.stage == "merge" and show_figures else log
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=figures, stderr=log, env=slot.environment())
    except BaseException:
        log.close()
        raise
    if not slot.gpus:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, slot.cores)
    return _Running(task, slot, process, log, time.monotonic())


def _open_log(task: Task, logs: Path) -> IO[str]:
    path = log_of(task, logs)
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:  # the work does not depend on it
        say(f"{path}: cannot be written ({error.strerror}); {task.name} has no log")
        return Path(os.devnull).open("a", encoding="utf-8")


def _end(work: _Running, logs: Path) -> None:
    task = work.task
    task.code = work.process.wait()
    work.log.close()
    task.seconds = time.monotonic() - work.began
    seconds = f"{task.seconds:.0f} s"
    if task.good:
        say(f"{task.name}: done in {seconds}")
    else:
        say(f"{task.name}: failed after {seconds} ({_reason(task, task.code, logs)})")


def log_of(task: Task, logs: Path) -> Path:
    """Return the log file of a task's standard error, and of its standard output unless that is shown."""
    return logs / ("-".join(task.name.split()) + ".log")


def _reason(task: Task, code: int, logs: Path) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = log_of(task, logs).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else f"code {code}"


def _ask_to_stop(running: Sequence[_Running]) -> None:
    """Hand the signal on, and wait until the tasks have kept what is finished."""
    for work in running:
        work.process.terminate()
    until = time.monotonic() + GRACE
    while any(work.process.poll() is None for work in running) and time.monotonic() < until:
        time.sleep(POLL)


def _kill(running: Sequence[_Running]) -> None:
    """Kill running tasks; nothing committed is lost."""
    for work in running:
        work.process.kill()
        work.process.wait()
        work.log.close()


def ended(task: Task, logs: Path) -> dict[str, Any]:
    """Describe the end of a task for JSON; `code` is None for one that was left out."""
    code = None if task.code == LEFT_OUT else task.code
    about = {"stage": task.job.stage, "shard": task.shard, "code": code, "seconds": task.seconds}
    return {**about, "log": None if code is None else log_of(task, logs)}


def report(tasks: Sequence[Task], logs: Path) -> None:
    """Raise UserError when tasks failed, with their exit code if they agree; PartialError when images failed;
    OutputError when all is done, but a task could not print its output.
    """
    failed = [t for t in tasks if t.code not in (*GOOD_ENDS, LEFT_OUT)]
    if failed:
        left_out = sum(t.code == LEFT_OUT for t in tasks)
        after = f", {left_out} dependent tasks were skipped" if left_out else ""
        error = UserError(
            f"submit: {_names(failed)} failed{after}",
            f"The logs are in {logs}; after fixing, the same command runs what is missing",
        )
        codes = {t.code for t in failed if t.code is not None}
        if len(codes) == 1 and min(codes) > 0:
            error.exit_code = codes.pop()
        raise error
    if partial := [t for t in tasks if t.code == PartialError.exit_code]:
        raise PartialError(
            f"submit: all tasks ran, but images failed in {_names(partial)}",
            f"The logs in {logs} list them; fix them, then run again with --retry-failed",
        )
    if unsaid := [t for t in tasks if t.code == OutputError.exit_code]:
        raise OutputError(f"submit: all tasks are done, but the logs of {_names(unsaid)} are incomplete", f"See {logs}")


def _names(tasks: Sequence[Task]) -> str:
    more = f" and {len(tasks) - 8} more" if len(tasks) > 8 else ""
    return ", ".join(task.name for task in tasks[:8]) + more


def _slots(workers: int | None) -> list[Slot]:
    return make_slots(workers, visible_gpus(), sorted(os.sched_getaffinity(0)))


def _submit(work: Work) -> Handed:
    logs = jobs_folder(work.out) / "log"
    tasks = run_chain(work.chain, logs, _slots(work.workers), work.show_figures)
    return Handed(about={"tasks": [ended(task, logs) for task in tasks]}, check=lambda: report(tasks, logs))


def _plan(work: Work) -> Handed:
    """Describe each job in one line, for people."""
    lines = []
    for job in work.chain.jobs:
        tasks = f", shards {array_expression(job.shards)}" if job.shards else ""
        lines.append(f"{job.stage}{tasks}: {shell_words(['vitp', *job.command])}\n")
    return Handed("".join(lines))


ENGINES.add("local", Engine(_submit, _plan, shards=lambda workers: len(_slots(workers)), takes_workers=True))
