"""Choose the shard of a command: `--shard I/N`, or the index that a scheduler puts into the environment.

The number of shards is never taken from the count of an array: one that retries tasks 3 and 17 has a count of two. The
jobs of a SkyPilot pool cannot be chosen, so their number is that of the shards, unless VITP_SHARDS lists the shards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vitp_pipeline.errors import UsageError
from vitp_pipeline.runtime.progress import say


@dataclass(frozen=True)
class Scheduler:
    """A scheduler's variables of an array task's index.

    Attributes:
        absent: values that mean "not an array job".
        size: the variable of the number of tasks, where tasks always count from 0 without gaps.
    """

    name: str
    index: str
    base: int = 0
    absent: tuple[str, ...] = ("",)
    size: str = ""


SCHEDULERS = (
    Scheduler("Slurm", "SLURM_ARRAY_TASK_ID"),
    Scheduler("Kubernetes", "JOB_COMPLETION_INDEX"),
    Scheduler("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX"),
    Scheduler("SGE", "SGE_TASK_ID", base=1, absent=("", "undefined")),
    Scheduler("PBS Pro", "PBS_ARRAY_INDEX"),
    Scheduler("Torque", "PBS_ARRAYID"),
    Scheduler("LSF", "LSB_JOBINDEX", base=1, absent=("", "0")),
    Scheduler("Google Batch", "BATCH_TASK_INDEX"),
    Scheduler("Cloud Run", "CLOUD_RUN_TASK_INDEX"),
    Scheduler("HyperQueue", "HQ_TASK_ID"),
    Scheduler("SkyPilot", "SKYPILOT_JOB_RANK", size="SKYPILOT_NUM_JOBS"),
)
SHARDS = "VITP_SHARDS"
"""Environment variable: the shards of an array, like 1000-1999 or 3,17-19; task i works on the i-th. For
schedulers whose indices end too early (Slurm's MaxArraySize) or cannot be chosen (Kubernetes, AWS Batch, SkyPilot)."""
FLAG = "--shard"


@dataclass(frozen=True)
class ShardChoice:
    """`index` None = all shards; `count` None = as many as the run has; `planned`: only their number is to be fixed."""

    index: int | None = None
    count: int | None = None
    source: str = ""
    planned: bool = False

    def for_new_run(self) -> None:
        """Raise UsageError for an index without a count: the first command on a run must say N."""
        if self.index is not None and self.count is None:
            raise UsageError(
                f"shard {self.index} ({self.source}) of how many? The run is new",
                "Give --shard I/N, or --shard /N if the scheduler sets the index",
            )

    def within(self, shards: int) -> list[int]:
        """List the shards to work on, of a run that has `shards`. Raises UsageError when the index is out of range."""
        if self.planned:
            return []
        if self.index is None:
            return list(range(shards))
        if self.index >= shards:
            raise UsageError(
                f"shard {self.index} ({self.source}) does not exist: this run has {shards} shards",
                f"Shards count from 0 to {shards - 1}",
            )
        if self.source != FLAG:
            say(f"shard {self.index} of {shards} ({self.source})")
        return [self.index]


def choose_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> ShardChoice:
    """Choose the shard: by the flag, else by the environment of exactly one scheduler, else all shards.

    Args:
        text: "I/N", "I" (N as the run has it) or "/N" (index from the environment, or all of N), or None.
    Raises:
        UsageError: not of that form, 0 ≤ I < N violated, two schedulers at once, an index that is not a number, or that
            VITP_SHARDS has no shard for; a pool of another number of jobs than shards.
    """
    index, count, source = None, None, ""
    if text is not None:
        match = re.fullmatch(r"(\d+)?(?:/(\d+))?", text.strip())
        if not match or text.strip() in ("", "/"):
            raise UsageError(f"--shard {text!r} is not of the form I/N", "For example --shard 0/8")
        index = _number(match[1]) if match[1] else None
        count = _number(match[2]) if match[2] else None
        source = FLAG
    if index is None:
        index, found, size = _from_environment(environment)
        source = found or source
        if size is not None and count not in (None, size):
            raise UsageError(
                f"--shard {text}: the pool has {size} jobs, so most shards would have none",
                f"Start as many jobs as shards, or list each pool's shards in {SHARDS}",
            )
        count = count if size is None else size
    if count == 0 or (index is not None and count is not None and index >= count):
        where = "" if source == FLAG else f" with shard {index} ({source})"
        raise UsageError(f"--shard {text}{where}: shards count from 0, so I must be less than N", "The last is N-1/N")
    return ShardChoice(index, count, source)


def _from_environment(environment: Mapping[str, str]) -> tuple[int | None, str, int | None]:
    """Return (the index, the variable that says it, the number of shards where the scheduler says it, too)."""
    found = [s for s in SCHEDULERS if environment.get(s.index, "") not in s.absent]
    if len(found) > 1:
        names = " and ".join(s.index for s in found)
        raise UsageError(f"two schedulers at once: {names} are set", "Choose the shard with --shard I/N")
    if not found:
        return None, "", None
    scheduler = found[0]
    value = environment[scheduler.index]
    if not value.isdecimal() or int(value) < scheduler.base:
        raise UsageError(f"{scheduler.index}={value} ({scheduler.name}) is not a task index", "Use --shard I/N")
    index = int(value) - scheduler.base
    if not environment.get(SHARDS):
        size = environment.get(scheduler.size, "")
        return index, scheduler.index, _number(size) if size.isdecimal() else None
    shards, source = parse_shards(environment[SHARDS]), f"{scheduler.index}={value} of {SHARDS}={environment[SHARDS]}"
    if index >= len(shards):
        raise UsageError(f"{source}: only {len(shards)} shards are listed", "Start as many array tasks, or unset it")
    return shards[index], source, None


def parse_shards(text: str) -> list[int]:
    """Parse "3,17-19" as [3, 17, 18, 19]. Raises UsageError when it is not of that form."""
    shards: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", piece.strip())
        if not match or _number(match[2] or match[1]) < _number(match[1]):
            raise UsageError(f"{text!r} is not a list of shards", "Write it like 3,17-19")
        shards += range(_number(match[1]), _number(match[2] or match[1]) + 1)
    return shards


MOST_SHARDS = 10**6


def _number(digits: str) -> int:
    if len(digits) > 9 or int(digits) > MOST_SHARDS:
        raise UsageError(f"shard {digits[:20]}: a run has at most {MOST_SHARDS} shards")
    return int(digits)


def array_expression(indices: Iterable[int]) -> str:
    """Format array task indices as schedulers write them: [3, 17, 18, 19] → "3,17-19"."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
