"""Rank, number of processes and address of process 0, as torchrun or srun puts them into the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vitp_pipeline.errors import UsageError

FIRST_PORT, PORTS = 12_000, 20_000
"""Below the ports that systems give to outgoing connections (32768 and up on Linux)."""
TORCHRUN = frozenset({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


@dataclass(frozen=True)
class Launch:
    """One process of several that were started together.

    Attributes:
        launcher: "torchrun" or "srun".
        rank, size, local: as those of `Distributed`.
        address, port: where process 0 listens.
    """

    launcher: str
    rank: int
    size: int
    local: int
    address: str
    port: int


def find_launch(environment: Mapping[str, str]) -> Launch | None:
    """Read rank and peers from the environment; None for a lone process. torchrun started by srun is torchrun.

    srun's MASTER_ADDR and MASTER_PORT follow from the step's node list and the job's number unless they are set. What
    counts is the step: SLURM_NTASKS alone is also set in a batch script, which runs as a single process.

    Raises:
        UsageError: a value that is no number, or a rank outside of its group.
    """
    if set(environment) >= TORCHRUN:
        address, port = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT")
        launch = Launch("torchrun", *_place(environment, "RANK", "WORLD_SIZE", "LOCAL_RANK"), address, port)
    elif {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_ID"} <= set(environment):
        rank, size, local = _place(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        if environment.get("SLURM_GPUS_PER_TASK"):  # then a process sees no GPU but its own
            local = 0
        port = _number(environment, "MASTER_PORT", slurm_port(environment))
        launch = Launch("srun", rank, size, local, environment.get("MASTER_ADDR") or slurm_address(environment), port)
    else:
        return None
    if not 0 <= launch.rank < launch.size:
        raise UsageError(f"process {launch.rank} of {launch.size}, says the environment of {launch.launcher}")
    return launch if launch.size > 1 else None


def slurm_address(environment: Mapping[str, str]) -> str:
    """Return the first node of the step, where srun puts task 0; the loopback address on a single node."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if environment.get("SLURM_STEP_NUM_NODES", "") == "1" or not nodes:
        return "127.0.0.1"
    return first_node(nodes)


def first_node(nodes: str) -> str:
    """Return the first name of a node list: gpu[007-010,12],x → gpu007; r[1-2]n[03,4] → r1n03."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0] if match else nodes)


def slurm_port(environment: Mapping[str, str]) -> int:
    """Derive a port from job and step: the same for all processes of a step, different for the next step or job."""
    return FIRST_PORT + (_number(environment, "SLURM_JOB_ID") + 4099 * _number(environment, "SLURM_STEP_ID", 0)) % PORTS


def _place(environment: Mapping[str, str], rank: str, size: str, local: str) -> tuple[int, int, int]:
    return _number(environment, rank), _number(environment, size), _number(environment, local, 0)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise UsageError(
            f"{name}={text} in the environment is not a number", "Unset it, or start with torchrun or srun"
        )
    return int(text)
