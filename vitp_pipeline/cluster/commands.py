"""Shell lines of a task: modules, environment, vitp, and the meaning of its exit code for the chain."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vitp_pipeline.cluster.plan import Job
from vitp_pipeline.cluster.profile import Resources
from vitp_pipeline.config.files import WEIGHTS, weights_folder
from vitp_pipeline.errors import OutputError, PartialError, StoppedError
from vitp_pipeline.runtime.escaping import shell_word, shell_words
from vitp_pipeline.storage.downloads.cache import CACHE

MAIN = "vitp_pipeline.cli.main"


CACHES = (CACHE, "HF_HOME", "HF_HUB_CACHE")
"""Variables that say where fetched files lie: tasks find there what this command has fetched."""
WAIT = 60
"""Seconds after the exit of one process of a training, with any code, until srun kills the others."""


def vitp_words(job: Job, resources: Resources) -> list[str]:
    """Return the words of a task's command in a container; torchrun starts the processes of a training."""
    words = ["vitp", *job.command]
    if _processes(job, resources) == 1:
        return words
    return ["torchrun", "--standalone", "--nproc-per-node", str(resources.processes), "--no-python", *words]


def task_script(job: Job, resources: Resources, shards: int) -> str:
    """Make the Bash lines of a Slurm task, without its header. A task stopped by its time limit requeues itself."""
    program = ["vitp"] if resources.image or resources.venv else [sys.executable, "-m", MAIN]
    words = [*program, *job.command]
    if job.shards is not None:
        words += ["--shard", f"/{shards}"]
    if resources.image:
        binds = ["--bind", ",".join(resources.binds)] if resources.binds else []
        words = ["apptainer", "exec", *(["--nv"] if resources.gpus else []), *binds, resources.image, *words]
    signal = "TERM"
    if (processes := _processes(job, resources)) > 1:
        # not --kill-on-bad-exit: the first to end with code 75 must not cost the others theirs
        options = [f"--ntasks={processes}", f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=0"]
        words = ["srun", *options, f"--wait={WAIT}", *words]
        signal = "USR1"  # srun hands it on, but at TERM it kills
    lines = [f"module load {shell_word(module)}" for module in resources.modules]
    if resources.venv:
        lines.append(f"source {shell_word(resources.venv)}/bin/activate")
    lines.append(f"export OMP_NUM_THREADS={resources.cpus}")
    lines += [f"export {name}={shell_word(os.environ[name])}" for name in CACHES if name in os.environ]
    if WEIGHTS in os.environ:
        lines.append(f"export {WEIGHTS}={shell_word(str(weights_folder()))}")
    return "\n".join([*lines, *resources.setup, *guarded(job, words, _requeue(resources), signal)]) + "\n"


def _processes(job: Job, resources: Resources) -> int:
    return resources.processes if job.stage == "train-classifier" else 1


def _requeue(resources: Resources) -> list[str]:
    if not resources.requeues:
        return []
    me = '"${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"'
    return [
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {resources.requeues} ]; then',
        f'    me={me}; scontrol requeue "${{me:-$SLURM_JOB_ID}}" && sleep 60',
        "  fi",
    ]


def guarded(job: Job, words: list[str], when_stopped: Sequence[str] = (), signal: str = "TERM") -> list[str]:
    """Run the words and pass on signals, which a scheduler may send to the shell alone.

    Failed images are recorded: they do not end a chain, its last job lists them. Neither does a full log disk.

    Args:
        when_stopped: lines to run after USR1 came and the command stopped in order.
        signal: sent to the command on TERM and USR1.
    """
    lines = [
        "warned=",
        f"{shell_words(words)} &",
        "task=$!",
        f"trap 'again=1; kill -{signal} \"$task\" 2>/dev/null' TERM",
        f"trap 'again=1 warned=1; kill -{signal} \"$task\" 2>/dev/null' USR1",
        # a signal ends `wait` before the task has ended
        'while :; do again= code=0; wait "$task" || code=$?; [ "$again" ] || break; done',
    ]
    if when_stopped:
        lines += [f'if [ "$warned" ] && [ "$code" -eq {StoppedError.exit_code} ]; then', *when_stopped, "fi"]
    done = [OutputError.exit_code] if job.stage == "merge" else [PartialError.exit_code, OutputError.exit_code]
    lines += [f'if [ "$code" -eq {code} ]; then code=0; fi' for code in done]
    return [*lines, 'exit "$code"']
