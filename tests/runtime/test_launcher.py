"""Who a process is, from what torchrun and srun put into its environment; the latter as Slurm 22.05 was seen to."""

from __future__ import annotations

import pytest

from vitp_pipeline.errors import UsageError
from vitp_pipeline.runtime.launcher import FIRST_PORT, PORTS, Launch, find_launch, first_node, slurm_port

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
BATCH = {
    "SLURM_JOB_ID": "4242",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
}
STEP = {
    **BATCH,
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_who_a_process_is() -> None:
    assert find_launch({}) is None
    assert find_launch(TORCHRUN) == Launch("torchrun", 3, 4, 1, "a", 29500)
    assert find_launch(BATCH) is None  # a batch script has a rank and a number of tasks too, but no others beside it
    assert find_launch(STEP) == Launch("srun", 2, 4, 0, "gpu07", FIRST_PORT + 4242)
    assert find_launch({**STEP, **TORCHRUN}).launcher == "torchrun"  # one torchrun a node, started by srun
    assert find_launch({**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert find_launch({**STEP, "SLURM_STEP_NUM_NODES": "1"}).address == "127.0.0.1"
    own = find_launch({**STEP, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"})
    assert (own.address, own.port) == ("10.0.0.7", 4000)


def test_a_process_with_one_visible_gpu_takes_that() -> None:
    third = {**STEP, "SLURM_LOCALID": "3"}
    assert find_launch(third).local == 3
    assert find_launch({**third, "SLURM_GPUS_PER_TASK": "1"}).local == 0


@pytest.mark.parametrize("change", [{"SLURM_PROCID": "4"}, {"SLURM_PROCID": "x"}, {"MASTER_PORT": "-1"}])
def test_an_environment_that_cannot_be(change: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        find_launch({**STEP, **change})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu[007-010,12],x", "gpu007"),
        ("r[1-2]n[03,4]", "r1n03"),
        ("n[5]-ib,n6", "n5-ib"),
        ("login-1.example.org", "login-1.example.org"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_jobs_and_steps_have_ports_of_their_own() -> None:
    steps = [{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in range(900, 1000) for step in range(4)]
    ports = [slurm_port(step) for step in steps]
    assert len(set(ports)) == len(ports)
    assert all(FIRST_PORT <= slurm_port({"SLURM_JOB_ID": str(2**k)}) < FIRST_PORT + PORTS for k in range(31))
