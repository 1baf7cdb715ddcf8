from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp_pipeline.errors import UsageError
from vitp_pipeline.execution.sharding import SCHEDULERS, ShardChoice, array_expression, choose_shard, parse_shards


@pytest.mark.parametrize(
    ("text", "index", "count"),
    [("0/1", 0, 1), ("3/8", 3, 8), (" 7/8 ", 7, 8), ("5", 5, None), ("/4", None, 4), (None, None, None)],
)
def test_forms(text: str | None, index: int | None, count: int | None) -> None:
    choice = choose_shard(text, {})
    assert (choice.index, choice.count) == (index, count)


@pytest.mark.parametrize(
    "text", ["", "/", "a", "1/", "-1/4", "1/2/3", "1.0/4", "8/8", "9/8", "0/0", "/0", "1 / 4", "٣/x"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard") as info:
        choose_shard(text, {})
    assert "\n" not in str(info.value)


# what the schedulers' manuals say: value → 0-based index
TASKS = {
    "SLURM_ARRAY_TASK_ID": {"0": 0, "12": 12},
    "JOB_COMPLETION_INDEX": {"0": 0, "12": 12},
    "AWS_BATCH_JOB_ARRAY_INDEX": {"0": 0, "12": 12},
    "SGE_TASK_ID": {"1": 0, "12": 11},
    "PBS_ARRAY_INDEX": {"0": 0, "12": 12},
    "PBS_ARRAYID": {"0": 0, "12": 12},
    "LSB_JOBINDEX": {"1": 0, "12": 11},
    "BATCH_TASK_INDEX": {"0": 0, "12": 12},
    "CLOUD_RUN_TASK_INDEX": {"0": 0, "12": 12},
    "HQ_TASK_ID": {"0": 0, "12": 12},
    "SKYPILOT_JOB_RANK": {"0": 0, "12": 12},
}


def test_every_scheduler_is_listed() -> None:
    assert {s.index for s in SCHEDULERS} == set(TASKS)


@pytest.mark.parametrize("variable", TASKS)
def test_environments(variable: str) -> None:
    for value, index in TASKS[variable].items():
        alone = choose_shard(None, {variable: value, "PATH": "/bin"})
        assert (alone.index, alone.count, alone.source) == (index, None, variable)
        assert choose_shard("/16", {variable: value}) == ShardChoice(index, 16, variable)
        flag = choose_shard("2/16", {variable: value})
        assert (flag.index, flag.count, flag.source) == (2, 16, "--shard")  # the flag wins
    assert choose_shard(None, {variable: ""}).index is None
    for odd in ("x", "-1", "1.5", "²"):
        with pytest.raises(UsageError, match=variable):
            choose_shard(None, {variable: odd})
    with pytest.raises(UsageError, match=variable):
        choose_shard("/4", {variable: "12"})


def test_values_outside_an_array_job() -> None:
    assert choose_shard(None, {"SGE_TASK_ID": "undefined"}).index is None
    assert choose_shard(None, {"LSB_JOBINDEX": "0"}).index is None
    with pytest.raises(UsageError, match="SGE_TASK_ID=0"):
        choose_shard(None, {"SGE_TASK_ID": "0"})  # counts from one
    assert choose_shard(None, {"SGE_TASK_ID": "undefined", "SLURM_ARRAY_TASK_ID": "3"}).index == 3


def test_two_schedulers_at_once() -> None:
    both = {"SLURM_ARRAY_TASK_ID": "1", "JOB_COMPLETION_INDEX": "1"}
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX"):
        choose_shard(None, both)
    with pytest.raises(UsageError):
        choose_shard("/4", both)
    assert choose_shard("1/4", both).index == 1
    assert choose_shard("1", both).index == 1


def test_within() -> None:
    assert ShardChoice().within(3) == [0, 1, 2]
    assert ShardChoice(2).within(3) == [2]
    with pytest.raises(UsageError, match="this run has 3 shards"):
        ShardChoice(3, source="HQ_TASK_ID").within(3)


def test_the_shard_is_said_when_a_scheduler_chose_it(capsys: pytest.CaptureFixture[str]) -> None:
    choose_shard("2/3", {}).within(3)
    choose_shard(None, {}).within(3)
    choose_shard("/3", {}).within(3)
    assert capsys.readouterr().err == ""
    choose_shard(None, {"SLURM_ARRAY_TASK_ID": "2"}).within(3)
    assert capsys.readouterr().err == "shard 2 of 3 (SLURM_ARRAY_TASK_ID)\n"


@pytest.mark.parametrize("variable", TASKS)
def test_an_array_that_stands_for_other_shards(variable: str) -> None:
    base = next(int(value) - index for value, index in TASKS[variable].items())
    first, last = str(base), str(base + 3)
    mapped = {"VITP_SHARDS": "7,1000-1002"}
    assert choose_shard(None, {variable: first, **mapped}).index == 7
    found = choose_shard("/2000", {variable: last, **mapped})
    assert (found.index, found.count) == (1002, 2000) and f"{variable}={last} of VITP_SHARDS=7,1000" in found.source
    with pytest.raises(UsageError, match="shard 1002"):
        choose_shard("/1002", {variable: last, **mapped})
    with pytest.raises(UsageError, match="4 shards"):
        choose_shard(None, {variable: str(int(last) + 1), **mapped})
    with pytest.raises(UsageError, match="not a list of shards"):
        choose_shard(None, {variable: first, "VITP_SHARDS": "7-"})
    assert choose_shard("3/8", {variable: first, **mapped}).index == 3  # the flag wins
    assert choose_shard(None, mapped) == ShardChoice()  # no array job: it says nothing


def test_a_pool_of_skypilot_has_as_many_shards_as_jobs() -> None:
    pool = {"SKYPILOT_JOB_RANK": "2", "SKYPILOT_NUM_JOBS": "5"}
    assert choose_shard(None, pool) == ShardChoice(2, 5, "SKYPILOT_JOB_RANK")
    assert choose_shard("/5", pool) == ShardChoice(2, 5, "SKYPILOT_JOB_RANK")
    with pytest.raises(UsageError, match="the pool has 5 jobs"):
        choose_shard("/64", pool)
    with pytest.raises(UsageError, match="less than N"):
        choose_shard(None, {**pool, "SKYPILOT_JOB_RANK": "5"})
    few = choose_shard("/64", {**pool, "VITP_SHARDS": "3,17,20-22"})  # a pool that makes what is missing
    assert (few.index, few.count) == (20, 64)
    assert choose_shard("1/64", pool) == ShardChoice(1, 64, "--shard")
    assert choose_shard(None, {"SKYPILOT_NUM_JOBS": "5"}) == ShardChoice()  # no job of a pool


@pytest.mark.parametrize("text", ["", "a", "1,", "3-1", "1--2", "-1", "1.5", "²"])
def test_no_list_of_shards(text: str) -> None:
    with pytest.raises(UsageError, match="not a list"):
        parse_shards(text)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_lists_of_shards_and_array_expressions_are_one(shards: set[int]) -> None:
    assert parse_shards(array_expression(shards)) == sorted(shards)


def test_planning_fixes_the_number_and_works_on_nothing() -> None:
    planned = ShardChoice(count=8, planned=True)
    planned.for_new_run()
    assert planned.within(8) == []


def test_a_new_run_needs_the_number_of_shards() -> None:
    for fine in (ShardChoice(), ShardChoice(0, 1), ShardChoice(3, 8), ShardChoice(None, 8)):
        fine.for_new_run()
    with pytest.raises(UsageError, match="shard 0"):
        ShardChoice(0, None, "SLURM_ARRAY_TASK_ID").for_new_run()
    with pytest.raises(UsageError, match="shard 3"):
        ShardChoice(3, None, "SLURM_ARRAY_TASK_ID").for_new_run()
