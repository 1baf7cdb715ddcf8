from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.making import make_chain
from vitp_pipeline.cluster.profile import STAGES, Profile, Resources
from vitp_pipeline.cluster.templates import aws_batch, kubernetes
from vitp_pipeline.errors import UsageError
from vitp_pipeline.execution.sharding import choose_shard

FULL = Resources(
    image="registry/vitp:1",
    gpus=1,
    cpus=8,
    memory_gb=32,
    minutes=240,
    throttle=4,
    claim="disk",
    queue="q",
    definition="vitp:3",
    processes=2,
    setup=('export A="b: c"',),
)
PROFILE = Profile(dict.fromkeys(STAGES, FULL))


def shards_of(job: dict, environment: list[dict], count: int) -> list[int]:
    """The shards that the tasks of an array would work on."""
    variables = {entry["name"]: entry["value"] for entry in environment}
    return [choose_shard("/10", {**variables, job["index"]: str(i)}).within(10)[0] for i in range(count)]


@pytest.mark.parametrize("missing", [range(10), (3, 7, 8)])
def test_kubernetes(missing) -> None:
    chain = make_chain(10, missing, missing, missing)
    text = kubernetes(chain, PROFILE, Path("/runs/My Run"))
    documents = list(yaml.safe_load_all(text))
    assert [d["metadata"]["labels"]["vitp-step"] for d in documents] == ["1", "1", "2", "3", "4"]
    assert len({d["metadata"]["name"] for d in documents}) == 5
    for document, job in zip(documents, chain.jobs, strict=True):
        assert (document["apiVersion"], document["kind"]) == ("batch/v1", "Job")
        spec, pod = document["spec"], document["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        program, flag, lines = container["command"]
        subprocess.run([program, "-n", flag, lines], check=True)
        assert 'export A="b: c"' in lines and " ".join(job.command) in lines
        assert container["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
        assert pod["restartPolicy"] == "Never" and pod["activeDeadlineSeconds"] == 14400
        assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
        codes = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
        assert codes == [2, 3, 4, 6]
        if job.shards is None:
            assert spec["completions"] == 1 and "backoffLimit" in spec and "--shard" not in lines
        else:
            assert spec["completionMode"] == "Indexed" and spec["parallelism"] == min(4, len(missing))
            assert shards_of({"index": "JOB_COMPLETION_INDEX"}, container["env"], spec["completions"]) == list(missing)
    assert "torchrun --standalone --nproc-per-node 2 --no-python vitp train-classifier" in text


@pytest.mark.parametrize("name", ["1e3", "y", "no", "null", "0x1f", "12", "a-b", "1_0"])
def test_a_name_is_text_to_every_reader_of_yaml(name: str) -> None:
    text = kubernetes(make_chain(2), PROFILE, Path("/runs") / name)
    label = next(yaml.safe_load_all(text))["metadata"]["labels"]["vitp-run"]
    assert label == name.replace("_", "-") and "&" not in text.partition("command")[0]
    assert f'vitp-run: "{label}"' in text or f"vitp-run: '{label}'" in text or label == "a-b"


def test_aws_batch() -> None:
    chain = make_chain(10, (3, 7, 8), (3, 7, 8), range(10))
    jobs = {job["jobName"].rpartition("run-")[2]: job for job in aws_batch(chain, PROFILE, Path("run"))}
    assert list(jobs) == [stage for stage in STAGES if stage != "predict"]  # a chain of its own
    for job in chain.jobs:
        entry = jobs[job.stage]
        overrides = entry["containerOverrides"]
        assert {r["type"]: r["value"] for r in overrides["resourceRequirements"]} == {
            "VCPU": "8",
            "MEMORY": "32768",
            "GPU": "1",
        }
        assert entry["timeout"] == {"attemptDurationSeconds": 14400} and entry["retryStrategy"]["attempts"] == 3
        subprocess.run(["bash", "-n", "-c", overrides["command"][2]], check=True)
        size = entry.get("arrayProperties", {}).get("size", 0)
        assert size == len(job.shards or ())
        if job.shards:
            shards = shards_of({"index": "AWS_BATCH_JOB_ARRAY_INDEX"}, overrides["environment"], size)
            assert shards == list(job.shards)
    assert jobs["classify"]["dependsOn"] == [
        {"jobId": "${generate-proposals}", "type": "N_TO_N"},
        {"jobId": "${train-classifier}"},
    ]
    assert jobs["evaluate"]["dependsOn"] == [{"jobId": "${classify}"}]  # other shards: the indices do not correspond
    assert jobs["merge"]["dependsOn"] == [{"jobId": "${evaluate}"}]


def test_one_missing_shard_is_a_plain_job_of_aws() -> None:
    (job, *_) = aws_batch(make_chain(10, [6], [6], [6]), PROFILE, Path("run"))
    assert "arrayProperties" not in job and "--shard 6/10" in job["containerOverrides"]["command"][2]


def test_what_a_template_needs() -> None:
    empty = Profile(dict.fromkeys(STAGES, Resources()))
    for template in (kubernetes, aws_batch):
        with pytest.raises(UsageError, match="profile names no"):
            template(make_chain(2), empty, Path("run"))
    with pytest.raises(UsageError, match="at most 10000"):
        aws_batch(make_chain(10_001), PROFILE, Path("run"))
