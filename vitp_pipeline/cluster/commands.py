"""The shell lines of a task: modules, environment, vitp, and what its exit code means for the chain."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from vitp_pipeline.cluster.plan import Job
from vitp_pipeline.cluster.profile import Resources
from vitp_pipeline.errors import PartialError, StoppedError

MAIN = "vitp_pipeline.cli.main"


def vitp_words(job: Job, resources: Resources, program: list[str] | None = None) -> list[str]:
    """The words of a task's command; `program` are those that start vitp, None = as the profile has it."""
    torchrun = ["--standalone", "--nproc-per-node", str(resources.processes)]
    many = job.stage == "train-classifier" and resources.processes > 1
    if program is None:
        program = ["vitp"] if resources.image or resources.venv else [sys.executable, "-m", MAIN]
    if many and program[1:] == ["-m", MAIN]:
        return [program[0], "-m", "torch.distributed.run", *torchrun, "-m", MAIN, *job.command]
    if many:
        return ["torchrun", *torchrun, "--no-python", *program, *job.command]
    return [*program, *job.command]


def task_script(job: Job, resources: Resources, shards: int) -> str:
    """Bash lines for a Slurm task, without its header. One that its time limit stops queues itself again."""
    words = vitp_words(job, resources)
    if job.shards is not None:
        words += ["--shard", f"/{shards}"]
    if resources.image:
        binds = ["--bind", ",".join(resources.binds)] if resources.binds else []
        words = ["apptainer", "exec", *(["--nv"] if resources.gpus else []), *binds, resources.image, *words]
    lines = [f"module load {shlex.quote(module)}" for module in resources.modules]
    if resources.venv:
        lines.append(f"source {shlex.quote(resources.venv)}/bin/activate")
    lines.append(f"export OMP_NUM_THREADS={resources.cpus}")
    return "\n".join([*lines, *resources.setup, *guarded(job, words, _requeue(resources))]) + "\n"


def _requeue(resources: Resources) -> list[str]:
    if not resources.requeues:
        return []
    me = '"${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"'
    return [
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {resources.requeues} ]; then',
        f'    me={me}; scontrol requeue "${{me:-$SLURM_JOB_ID}}" && sleep 60',
        "  fi",
    ]


def guarded(job: Job, words: list[str], when_stopped: Sequence[str] = ()) -> list[str]:
    """Runs the words and passes on signals, which a scheduler may send to the shell alone.

    Images that failed are on record: they do not end a chain, its last job names them.

    Args:
        when_stopped: lines for when USR1 has come and the words have ended in order because of it.
    """
    lines = [
        "warned=",
        f"{shlex.join(words)} &",
        "task=$!",
        "trap 'again=1; kill -TERM \"$task\" 2>/dev/null' TERM",
        "trap 'again=1 warned=1; kill -TERM \"$task\" 2>/dev/null' USR1",
        # a signal ends `wait` before the task has ended
        'while :; do again= code=0; wait "$task" || code=$?; [ "$again" ] || break; done',
    ]
    if when_stopped:
        lines += [f'if [ "$warned" ] && [ "$code" -eq {StoppedError.exit_code} ]; then', *when_stopped, "fi"]
    if job.stage != "merge":
        lines.append(f'if [ "$code" -eq {PartialError.exit_code} ]; then code=0; fi')
    return [*lines, 'exit "$code"']
