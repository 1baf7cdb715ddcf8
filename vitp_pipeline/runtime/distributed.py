"""The processes of one training, as torchrun or srun starts them; without either, one alone.

Gradients are summed here, not by torch's DistributedDataParallel: one sum a step whatever is accumulated, and no
assumption that every process has images or every layer a gradient. Equal sums on all of them keep the weights equal.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.errors import StoppedError, UsageError, UserError
from vitp_pipeline.runtime.launcher import Launch, find_launch

if TYPE_CHECKING:
    import torch

BUCKET = 2**24
"""Numbers summed by one collective: a call for each layer would cost more than what it moves."""
PATIENCE = timedelta(hours=1)
"""How long a process may wait for the others, who may be reading a slow disk."""
START = timedelta(minutes=10)
"""How long processes may wait for the first sign of one another."""


def _collective(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a collective method: all processes must call it together; a lone process may call it alone."""

    @wraps(method)
    def call(self: Distributed, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except RuntimeError as error:  # a closed connection, or a timeout of an hour
            raise UserError(
                f"training: process {self.rank} lost the connection to another process",
                "Run the same command again; training continues from the last checkpoint",
            ) from error

    return call


@dataclass(frozen=True)
class Distributed:
    """A process and its place among all.

    Attributes:
        rank: 0 to size − 1; process 0 is the main one: it alone writes, locks and speaks.
        size: number of processes.
        local: the process's number on its own machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return this process's own GPU for `cuda` without a number. Raises UsageError if there are too few."""
        import torch

        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        if self.local >= torch.cuda.device_count():
            raise UsageError(
                f"process {self.local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}",
                "Start fewer processes",
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    @_collective
    def share(self, value: Any) -> Any:
        """Broadcast process 0's value; the others' `value` is ignored."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @_collective
    def gather(self, value: Any) -> list[Any]:
        """Gather every process's value, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait_for_main_process(self) -> None:
        """Wait until process 0 gets here: a launcher may end all processes when one of them exits."""
        self.share(None)

    def merge(self, table: dict[str, str]) -> None:
        """Put the entries of every process's table into `table`."""
        for found in self.gather(dict(table)):
            table.update(found)

    @_collective
    def add(self, numbers: np.ndarray) -> np.ndarray:
        """Sum arrays of one shape and dtype over all processes."""
        if self.size == 1:
            return numbers
        import torch
        import torch.distributed as dist

        total = torch.from_numpy(np.ascontiguousarray(numbers)).clone()
        dist.all_reduce(total)
        return total.numpy()

    @_collective
    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; none counts as zero."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        bucket: list[torch.Tensor] = []
        parameters = list(parameters)
        for number, parameter in enumerate(parameters, 1):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if number == len(parameters) or sum(g.numel() for g in bucket) >= BUCKET:
                total = torch.cat([g.flatten() for g in bucket])
                dist.all_reduce(total)
                for gradient, part in zip(bucket, torch.split(total, [g.numel() for g in bucket]), strict=True):
                    gradient.copy_(part.view_as(gradient))
                bucket = []


ALONE = Distributed()


@contextmanager
def launched_processes() -> Iterator[Distributed]:
    """Set up the processes that torchrun's or srun's environment describes, or this one alone.

    An error in one process ends all of them: the first to fail raises it, the others exit silently. If a process dies,
    its connections close, and the next collective call of the others fails.

    Raises:
        UserError: the processes cannot connect to each other.
    """
    if (launch := find_launch(os.environ)) is None:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    store = _meeting_place(launch)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    collectives = dist.PrefixStore("collectives", store)
    dist.init_process_group(backend, store=collectives, rank=launch.rank, world_size=launch.size, timeout=PATIENCE)
    try:
        yield Distributed(launch.rank, launch.size, launch.local)
    except Exception as error:
        speaks = launch.rank == 0 if isinstance(error, StoppedError) else _first_to_fail(store)
        if not speaks:
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        raise
    dist.destroy_process_group()


def _meeting_place(launch: Launch) -> torch.distributed.Store:
    """Open the store of process 0, through which the processes find each other."""
    import torch.distributed as dist

    try:
        if launch.launcher == "torchrun":  # it may keep the store itself
            store: torch.distributed.Store = next(dist.rendezvous("env://", timeout=START))[0]
            return store
        socket.getaddrinfo(launch.address, launch.port)  # of a name that means nothing torch would ask until the end
        return dist.TCPStore(launch.address, launch.port, launch.size, launch.rank == 0, START)
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0].rstrip(".")
        raise UserError(
            f"training: process {launch.rank} cannot reach the others at {launch.address}:{launch.port} ({reason})",
            "Set MASTER_ADDR and MASTER_PORT to the host of process 0 and a free port there that all can reach",
        ) from error


def _first_to_fail(store: torch.distributed.Store) -> bool:
    """Tell if no process has failed before. Unknown once process 0, which counts, is gone."""
    try:
        return bool(store.add("failures", 1) == 1)
    except RuntimeError:
        return True
