"""Submit a chain as Slurm jobs.

Slurm's constraints: MaxArraySize limits the highest index, not the count, so later shards go into further arrays whose
tasks start at 0 again and are told by VITP_SHARDS which shards they stand for. `aftercorr` pairs tasks of equal index,
so the arrays of two stages are cut at the same shards. A dependency that can no longer be met removes a job
(`--kill-on-invalid-dep`), so nothing waits for ever. Variables of a job that submits from within another one
(SLURM_ARRAY_TASK_ID, SBATCH_…) are kept from the new ones.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vitp_pipeline.cluster.commands import task_script
from vitp_pipeline.cluster.engine import ENGINES, Engine, Handed, Work
from vitp_pipeline.cluster.plan import Chain, Job, jobs_folder
from vitp_pipeline.cluster.profile import Profile, Resources
from vitp_pipeline.errors import LockedError, UsageError, UserError
from vitp_pipeline.execution.sharding import SCHEDULERS, SHARDS, array_expression
from vitp_pipeline.runtime.escaping import acts, shell_word, shell_words
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.fs_ops import make_folder
from vitp_pipeline.storage.run_store import LocalStore
from vitp_pipeline.storage.sealed import read_sealed, write_sealed

DEFAULT_MAX_ARRAY_SIZE = 1001

After = tuple[tuple[str, int], ...]
"""(kind, number) of the submissions that one waits for."""


@dataclass(frozen=True)
class Submission:
    """One call of sbatch.

    Attributes:
        number: its place in the chain, from 0.
        shards: the tasks; None = a job without an array.
        first: shard of array index 0.
        after: what it waits for.
    """

    number: int
    job: Job
    shards: tuple[int, ...] | None
    first: int = 0
    last: int = 0
    after: After = ()

    def arguments(self, script: Path, throttle: int, ids: Sequence[str]) -> list[str]:
        """Return the words of the sbatch call; `ids` are the job ids of earlier submissions."""
        words = ["sbatch", "--parsable"]
        if self.shards is not None:
            indices = array_expression(shard - self.first for shard in self.shards)
            words.append(f"--array={indices}{f'%{throttle}' if throttle else ''}")
        kinds: dict[str, list[str]] = defaultdict(list)
        for kind, number in self.after:
            kinds[kind].append(ids[number])
        if kinds:
            words.append("--dependency=" + ",".join(f"{kind}:{':'.join(found)}" for kind, found in kinds.items()))
        if self.first:
            words.append(f"--export=ALL,{SHARDS}={self.first}-{self.last}")
        return [*words, str(script)]


def submissions(chain: Chain, max_array_size: int) -> list[Submission]:
    """Split the chain into sbatch calls: one per array and dependency of a stage."""
    made: list[Submission] = []
    of_stage: dict[str, list[Submission]] = defaultdict(list)
    for job in chain.jobs:
        whole = tuple(("afterok", s.number) for s in of_stage[job.all_of])
        groups: dict[tuple[int, After], list[int]] = defaultdict(list)
        if job.shards is None:
            groups[0, whole] = []
        for shard in job.shards or ():
            before = (s for s in of_stage[job.same_shard] if shard in (s.shards or ()))
            after = tuple(("aftercorr", s.number) for s in before) + whole
            groups[shard // max_array_size * max_array_size, after].append(shard)
        for (first, after), shards in groups.items():
            last = min(first + max_array_size, chain.shards) - 1
            tasks = None if job.shards is None else tuple(shards)
            submission = Submission(len(made), job, tasks, first, last, after)
            made.append(submission)
            of_stage[job.stage].append(submission)
    return made


def script(job: Job, resources: Resources, shards: int, out: Path) -> str:
    """Make the batch script of a stage; without --array on the command line it runs the missing tasks.

    Raises:
        UsageError: a value cannot be written in a line for sbatch.
    """
    options = [
        f"--job-name=vitp-{job.stage}",
        f"--output={_word(_logs(job, out))}",
        "--open-mode=append",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        "--nodes=1",
        f"--ntasks={resources.processes if job.stage == 'train-classifier' else 1}",
        f"--cpus-per-task={resources.cpus}",
    ]
    options += [f"--partition={_word(resources.partition)}"] if resources.partition else []
    options += [f"--account={_word(resources.account)}"] if resources.account else []
    options += [f"--gres=gpu:{resources.gpus}"] if resources.gpus else []
    options += [f"--mem={resources.memory_gb}G"] if resources.memory_gb else []
    options += [f"--time={resources.minutes}"] if resources.minutes else []
    if resources.grace:
        # in a short job not at its very beginning
        seconds = min(resources.grace, 30 * resources.minutes) if resources.minutes else resources.grace
        options.append(f"--signal=B:USR1@{seconds}")
    options += map(_line, resources.options)
    header = "\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options)])
    return f"{header}\n{task_script(job, resources, shards)}"


def _logs(job: Job, out: Path) -> str:
    """Return the file name pattern of a job's logs."""
    if "\\" in str(out):  # a pattern that holds one is not a pattern
        raise UsageError(f"{out}: Slurm cannot write logs to a path with a backslash", "Choose another --out")
    pattern = "%A_%a" if job.shards is not None else "%j"
    return f"{str(jobs_folder(out) / 'log' / job.stage).replace('%', '%%')}-{pattern}.log"


def _word(text: str) -> str:
    """Quote text for an #SBATCH line: a backslash escapes the next character, quotes group."""
    if re.fullmatch(r"[\w%+,./:=@-]+", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", _line(text)) + '"'


def _line(text: str) -> str:
    """Raise UsageError if sbatch or a reader would see another line."""
    if any(acts(character) for character in text if character != "\t"):
        raise UsageError(f"{text}: sbatch lines cannot contain control characters", "Choose another folder or option")
    return text


def max_array_size(profile: Profile) -> int:
    """Return the profile's limit, else scontrol's; Slurm's default without scontrol."""
    if profile["generate-proposals"].max_array_size:
        return profile["generate-proposals"].max_array_size
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, env=_environment())
    except OSError:
        return DEFAULT_MAX_ARRAY_SIZE
    match = re.search(r"^MaxArraySize\s*=\s*([1-9][0-9]*)", done.stdout, re.MULTILINE)
    return int(match[1]) if match else DEFAULT_MAX_ARRAY_SIZE


@dataclass(frozen=True)
class Planned:
    """Jobs that would be submitted.

    Attributes:
        scripts: path and text of a script for each stage.
        calls: the words of each call of sbatch, in which $JOB0 stands for the job id that the first one prints.
    """

    scripts: list[tuple[Path, str]]
    calls: list[list[str]]

    def text(self) -> str:
        """Format the plan for people, with calls as shell lines."""
        scripts = "".join(f"# ---- {path}\n{text}\n" for path, text in self.scripts)
        calls = "".join(f"JOB{number}=$({_in_shell(words)})\n" for number, words in enumerate(self.calls))
        return f"{scripts}# ---- submitted with\n{calls}"


def _in_shell(words: Sequence[str]) -> str:
    """Format a call as a shell line. Only the dependency contains $JOB0, which must stay unquoted."""
    return " ".join(word if word.startswith("--dependency=") else shell_word(word) for word in words)


def plan_scripts(chain: Chain, profile: Profile, out: Path) -> Planned:
    """List what `submit_chain` would do. Writes nothing."""
    scripts = [(_script_path(out, job), script(job, profile[job.stage], chain.shards, out)) for job in chain.jobs]
    calls = submissions(chain, max_array_size(profile))
    ids = [f"$JOB{n}" for n in range(len(calls))]
    return Planned(
        scripts,
        [call.arguments(_script_path(out, call.job), profile[call.job.stage].throttle, ids) for call in calls],
    )


@dataclass(frozen=True)
class Submitted:
    """A job of the queue. `shards` are its tasks (None = no array), `after` the ids of the jobs that it waits for."""

    id: str
    stage: str
    shards: tuple[int, ...] | None
    after: tuple[str, ...]


def submit_chain(
    chain: Chain, profile: Profile, out: Path, call: Callable[[list[str]], str] | None = None
) -> list[Submitted]:
    """Write the scripts and submit the chain: all of it or, when sbatch refuses one job, nothing.

    Args:
        call: runs one of Slurm's programs and returns what it prints.
    Raises:
        LockedError: jobs of the last submission are still in the queue.
        UserError: Slurm is not there, or refuses.
    """
    call = call or _call
    _require_no_jobs(out, call)
    folder = jobs_folder(out)
    for job in chain.jobs:
        text = script(job, profile[job.stage], chain.shards, out)
        write_whole(_script_path(out, job), text)
    make_folder(folder / "log")
    ids: list[str] = []
    calls = submissions(chain, max_array_size(profile))
    try:
        for submission in calls:
            words = submission.arguments(_script_path(out, submission.job), profile[submission.job.stage].throttle, ids)
            ids.append(call(words).strip().partition(";")[0])
    except BaseException:
        if ids:
            call(["scancel", *ids])
        raise
    stages = [submission.job.stage for submission in calls]
    submitted = [{"id": i, "stage": s} for i, s in zip(ids, stages, strict=True)]
    write_sealed(folder / "submitted.json", {"jobs": submitted})
    for submission, job_id in zip(calls, ids, strict=True):
        say(f"job {job_id}: {submission.job.stage}{_tasks(submission)}{_waits(submission, ids)}")
    return [
        Submitted(job_id, s.job.stage, s.shards, tuple(ids[number] for _, number in s.after))
        for s, job_id in zip(calls, ids, strict=True)
    ]


def _script_path(out: Path, job: Job) -> Path:
    return jobs_folder(out) / f"{job.stage}.sh"


def _tasks(submission: Submission) -> str:
    return "" if submission.shards is None else f", shards {array_expression(submission.shards)}"


def _waits(submission: Submission, ids: Sequence[str]) -> str:
    waits = [f"{ids[number]} ({kind})" for kind, number in submission.after]
    return f", after {' and '.join(waits)}" if waits else ""


def _require_no_jobs(out: Path, call: Callable[[list[str]], str]) -> None:
    """Require that no job of the last submission is queued: two chains would compete for the run's locks."""
    record = jobs_folder(out) / "submitted.json"
    if not LocalStore(out).exists(record):
        return
    ids = {entry["id"] for entry in read_sealed(record)["jobs"]}
    left = sorted(ids & set(call(["squeue", "--noheader", "--format=%F"]).split()), key=int)
    if left:
        raise LockedError(
            f"{out}: jobs {', '.join(left)} of the last submission are still in the queue",
            f"Let them end, or `scancel {' '.join(left)}`",
        )


def _call(words: list[str]) -> str:
    """Return the standard output of one of Slurm's programs."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=_environment())
    except OSError as error:
        raise UserError(f"{words[0]}: cannot be run ({error.strerror})", "Submit where Slurm's programs are") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"code {done.returncode}"
        raise UserError(f"{shell_words(words)}: {said}", "Nothing is submitted; correct the profile")
    return done.stdout


def _environment() -> dict[str, str]:
    """Return the environment without a surrounding job's variables; SLURM_CONF stays, it locates the cluster."""
    indices = {scheduler.index for scheduler in SCHEDULERS} | {SHARDS}
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not (name.startswith(("SLURM_", "SBATCH_")) or name in indices)
    }


def _submit(work: Work) -> Handed:
    submitted = submit_chain(work.chain, work.profile, work.out)
    return Handed("".join(f"{job.id}\n" for job in submitted), {"submitted": [asdict(job) for job in submitted]})


def _plan(work: Work) -> Handed:
    planned = plan_scripts(work.chain, work.profile, work.out)
    return Handed(planned.text(), asdict(planned))


ENGINES.add("slurm", Engine(_submit, _plan))
