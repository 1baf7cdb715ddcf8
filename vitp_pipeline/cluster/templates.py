"""Print a chain as files for Kubernetes and AWS Batch; nothing is submitted.

Both count the tasks of an array from 0 without gaps, so VITP_SHARDS tells which shards they stand for.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from vitp_pipeline.cluster.commands import guarded, vitp_words
from vitp_pipeline.cluster.engine import ENGINES, Engine, Handed, Work
from vitp_pipeline.cluster.plan import Chain, Job
from vitp_pipeline.cluster.profile import Profile, Resources
from vitp_pipeline.errors import (
    CorruptError,
    IncompatibleError,
    InputError,
    UsageError,
)
from vitp_pipeline.execution.sharding import SHARDS, array_expression

HOPELESS = sorted(kind.exit_code for kind in (UsageError, InputError, IncompatibleError, CorruptError))
"""Exit codes after which trying again cannot help."""
ATTEMPTS = 3
AWS_ARRAY = (2, 10_000)
"""Smallest and largest array of AWS Batch."""


def kubernetes(chain: Chain, profile: Profile, out: Path) -> str:
    """Make the YAML of Jobs, labeled vitp-step 1, 2 … in the order in which they may start.

    Raises:
        UsageError: the profile names no image.
    """
    name = re.sub(r"[^a-z0-9-]+", "-", out.name.lower())[:30].strip("-") or "run"
    steps = _steps(chain)
    documents = [_kubernetes_job(job, profile[job.stage], chain.shards, name, steps[job.stage]) for job in chain.jobs]
    last = max(steps.values(), default=0)
    header = (
        "# For each step N from 1 to "
        f"{last}:\n#   kubectl apply -f chain.yaml -l vitp-step=N\n"
        f"#   kubectl wait --for=condition=complete --timeout=-1s job -l vitp-run={name},vitp-step=N\n"
    )
    text: str = yaml.dump_all(documents, Dumper=_Dumper, explicit_start=True, sort_keys=False, width=math.inf)
    return header + text


def _steps(chain: Chain) -> dict[str, int]:
    """Return the step of each stage: one more than the last of those that it waits for."""
    steps: dict[str, int] = {}
    for job in chain.jobs:
        steps[job.stage] = 1 + max(steps.get(job.same_shard, 0), steps.get(job.all_of, 0))
    return steps


def _kubernetes_job(job: Job, resources: Resources, shards: int, name: str, step: int) -> dict[str, Any]:
    if not resources.image:
        raise UsageError("the profile names no container image", 'Give --profile a file with image = "…"')
    labels = {"vitp-run": name, "vitp-step": str(step)}
    amounts: dict[str, str] = {"cpu": str(resources.cpus)}
    amounts |= {"memory": f"{resources.memory_gb}Gi"} if resources.memory_gb else {}
    amounts |= {"nvidia.com/gpu": str(resources.gpus)} if resources.gpus else {}
    container: dict[str, Any] = {
        "name": "vitp",
        "image": resources.image,
        "command": ["bash", "-c", _lines(job, resources, shards)],
        "env": [{"name": key, "value": value} for key, value in _variables(job, resources).items()],
        "resources": {"requests": amounts, "limits": amounts},
    }
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [container]}
    if resources.claim:
        container["volumeMounts"] = [{"name": "data", "mountPath": resources.mount}]
        pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": resources.claim}}]
    array = job.shards is not None
    tasks = len(job.shards or (0,))
    rules = [
        {
            "action": "FailIndex" if array else "FailJob",
            "onExitCodes": {"containerName": "vitp", "operator": "In", "values": HOPELESS},
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},  # preempted: no attempt is counted
    ]
    spec: dict[str, Any] = {"completions": tasks, "parallelism": min(tasks, resources.throttle or tasks)}
    spec |= {"completionMode": "Indexed", "backoffLimitPerIndex": ATTEMPTS} if array else {"backoffLimit": ATTEMPTS}
    spec |= {"podFailurePolicy": {"rules": rules}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    if resources.minutes:
        pod["activeDeadlineSeconds"] = 60 * resources.minutes
    about = {"name": f"vitp-{name}-{job.stage}", "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": spec}


def aws_batch(chain: Chain, profile: Profile, out: Path) -> list[dict[str, Any]]:
    """Make the inputs of `aws batch submit-job`; `${stage}` stands for the job id of that stage.

    Raises:
        UsageError: the profile names no queue or job definition, or there are more tasks than an array can have.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", out.name)
    submitted = {job.stage: job for job in chain.jobs}
    return [_aws_job(job, profile[job.stage], chain.shards, name, submitted) for job in chain.jobs]


def _aws_job(job: Job, resources: Resources, shards: int, name: str, submitted: dict[str, Job]) -> dict[str, Any]:
    if not (resources.queue and resources.definition):
        raise UsageError("the profile names no queue or no job definition", 'Give it queue = "…" and definition = "…"')
    tasks = len(job.shards or (0,))
    if tasks > AWS_ARRAY[1]:
        raise UsageError(
            f"{job.stage}: {tasks} tasks; an array of AWS Batch has at most {AWS_ARRAY[1]}", "Fewer shards"
        )
    amounts = {"VCPU": resources.cpus, "MEMORY": 1024 * resources.memory_gb, "GPU": resources.gpus}
    retry = [{"onExitCode": str(code), "action": "EXIT"} for code in HOPELESS] + [{"onReason": "*", "action": "RETRY"}]
    entry: dict[str, Any] = {
        "jobName": f"vitp-{name}-{job.stage}",
        "jobQueue": resources.queue,
        "jobDefinition": resources.definition,
        "containerOverrides": {
            "command": ["bash", "-c", _lines(job, resources, shards)],
            "environment": [{"name": key, "value": value} for key, value in _variables(job, resources).items()],
            "resourceRequirements": [{"type": key, "value": str(value)} for key, value in amounts.items() if value],
        },
        "retryStrategy": {"attempts": ATTEMPTS, "evaluateOnExit": retry},
    }
    if tasks >= AWS_ARRAY[0]:
        entry["arrayProperties"] = {"size": tasks}
    if resources.minutes:
        entry["timeout"] = {"attemptDurationSeconds": 60 * resources.minutes}
    if needs := [
        _aws_dependency(job, submitted[stage]) for stage in (job.same_shard, job.all_of) if stage in submitted
    ]:
        entry["dependsOn"] = needs
    return entry


def _aws_dependency(job: Job, before: Job) -> dict[str, str]:
    """Depend task by task if both arrays cover the same shards, else on the whole job."""
    paired = before.stage == job.same_shard and before.shards == job.shards and len(job.shards or ()) >= AWS_ARRAY[0]
    return {"jobId": f"${{{before.stage}}}", **({"type": "N_TO_N"} if paired else {})}


def _lines(job: Job, resources: Resources, shards: int) -> str:
    words = vitp_words(job, resources)
    if job.shards is not None:
        one = len(job.shards) == 1
        words += ["--shard", f"{job.shards[0]}/{shards}" if one else f"/{shards}"]
    return "\n".join([*resources.setup, *guarded(job, words)])


def _variables(job: Job, resources: Resources) -> dict[str, str]:
    variables = {"OMP_NUM_THREADS": str(resources.cpus)}
    if job.shards is not None and len(job.shards) > 1:
        variables[SHARDS] = array_expression(job.shards)
    return variables


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Block YAML of ASCII, safe to print; text of several lines stands as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    """Quote what other readers, such as kubectl, take for a number or a boolean and PyYAML does not: 1e3, y."""
    word = re.match("[A-Za-z]{2}", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None if word else '"')


_Dumper.add_representer(str, _text)


def _kubernetes(work: Work) -> Handed:
    text = kubernetes(work.chain, work.profile, work.out)
    return Handed(text, {"manifest": text})


def _aws(work: Work) -> Handed:
    jobs = aws_batch(work.chain, work.profile, work.out)
    return Handed(json.dumps(jobs, indent=2) + "\n", {"manifest": jobs})


ENGINES.add("k8s", Engine(_kubernetes, _kubernetes, here=False))
ENGINES.add("aws", Engine(_aws, _aws, here=False))
