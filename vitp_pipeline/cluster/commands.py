"""The shell lines of a task: modules, environment, vitp, and what its exit code means for the chain."""

from __future__ import annotations

import shlex
import sys

from vitp_pipeline.cluster.plan import Job
from vitp_pipeline.cluster.profile import Resources
from vitp_pipeline.errors import PartialError

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
    """Bash lines for a Slurm task, without its header."""
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
    return "\n".join([*lines, *resources.setup, *guarded(job, words)]) + "\n"


def guarded(job: Job, words: list[str]) -> list[str]:
    """Runs the words. Images that failed are on record: they do not end a chain, its last job names them."""
    command = shlex.join(words)
    if job.stage == "merge":
        return [command]
    code = PartialError.exit_code
    return ["code=0", f"{command} || code=$?", f'if [ "$code" -eq {code} ]; then code=0; fi', 'exit "$code"']
