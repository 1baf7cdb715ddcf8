"""Two ways of doing the same work, timed in turn: ours, bare, ours, bare, … so that a busy machine slows both alike."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Comparison:
    """Seconds of every repeat; `units` of work are done in each.

    Attributes:
        ours_cpu, bare_cpu: seconds that all threads of the process together had a processor.
    """

    units: int
    ours: tuple[float, ...]
    bare: tuple[float, ...]
    ours_cpu: tuple[float, ...] = ()
    bare_cpu: tuple[float, ...] = ()

    @property
    def ours_per_second(self) -> float:
        return self.units / statistics.median(self.ours)

    @property
    def bare_per_second(self) -> float:
        return self.units / statistics.median(self.bare)

    @property
    def ratio(self) -> float:
        """Our speed over the bare one, of the medians."""
        return self.ours_per_second / self.bare_per_second

    @property
    def cpu_ratio(self) -> float:
        """Bare seconds of the processor over ours, of the medians: the most that overlapping could reach where both
        keep all cores busy, and hardly changed by what else the machine does.
        """
        return statistics.median(self.bare_cpu) / statistics.median(self.ours_cpu)

    @property
    def ratios(self) -> tuple[float, float]:
        """Lowest and highest ratio of a pair: how far to trust `ratio`."""
        pairs = [bare / ours for ours, bare in zip(self.ours, self.bare, strict=True)]
        return min(pairs), max(pairs)


def compare(
    ours: Callable[[], object],
    bare: Callable[[], object],
    units: int,
    repeats: int,
    finish: Callable[[], object] = lambda: None,
    clock: Callable[[], float] | None = None,
    before: Callable[[], object] = lambda: None,
) -> Comparison:
    """Times both `repeats` times, alternating, after one untimed run of each.

    Args:
        units: units of work in one call of either.
        finish: called inside the timing, e.g. to wait for a GPU.
        clock: says the seconds; None = those that pass. `time.process_time`, those of the processor, leaves out what
            else the machine does, of one thread.
        before: called before each run, outside the timing.
    """
    clock = clock or time.perf_counter
    seconds: dict[Callable, list[float]] = {ours: [], bare: []}
    processor: dict[Callable, list[float]] = {ours: [], bare: []}
    for repeat in range(repeats + 1):
        for work in (ours, bare):
            before()
            began, worked = clock(), time.process_time()
            work()
            finish()
            if repeat:
                seconds[work].append(clock() - began)
                processor[work].append(time.process_time() - worked)
    return Comparison(units, *(tuple(each[way]) for each in (seconds, processor) for way in (ours, bare)))


def peak_memory() -> int:
    """Most bytes of memory that this process has held at once.

    Linux says it in /proc; getrusage would also count the process that started this one, as large as it then was.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
