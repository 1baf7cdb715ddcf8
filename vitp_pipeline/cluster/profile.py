"""A profile: what a cluster must be told besides the recipe, as one TOML file.

Keys at the top hold for every stage, a table named after a stage (or `merge`) overrides them for it. An
example lies in stages/cluster/.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp_pipeline.errors import UsageError
from vitp_pipeline.fingerprint import setting
from vitp_pipeline.paths import find_toml, read_toml
from vitp_pipeline.recipe import TABLES

STAGES = (*TABLES, "merge")
"""The stages of a chain; `merge` is the last `vitp evaluate`, which adds up what the tasks measured."""


@dataclass(frozen=True)
class Resources:
    """What a task of one stage needs."""

    partition: str = setting("", help="Slurm partition")
    account: str = setting("", help="Slurm account")
    gpus: int = setting(0, help="GPUs of a task")
    cpus: int = setting(1, help="cores of a task, also its number of threads; in Slurm of each process of a training")
    memory_gb: int = setting(0, help="memory of a task; 0 = the cluster's default")
    minutes: int = setting(0, help="time limit of a task; 0 = the cluster's default")
    throttle: int = setting(0, help="tasks of an array at once; 0 = as many as there is room for")
    max_array_size: int = setting(0, help="Slurm's MaxArraySize; 0 = ask scontrol")
    processes: int = setting(1, help="of a training task: by srun in Slurm, by torchrun elsewhere")
    image: str = setting("", help="container image; Slurm runs it with apptainer")
    binds: tuple[str, ...] = setting((), help="folders that apptainer shows inside the image")
    venv: str = setting("", help="virtual environment to activate; without it and image, the one that submits")
    modules: tuple[str, ...] = setting((), help="for `module load`")
    setup: tuple[str, ...] = setting((), help="further shell lines before vitp starts")
    options: tuple[str, ...] = setting((), help='further options of sbatch, e.g. "--constraint=a100"')
    claim: str = setting("", help="Kubernetes: PersistentVolumeClaim with data and run")
    mount: str = setting("/data", help="Kubernetes: where it appears in the container")
    requeues: int = setting(20, help="Slurm: how often a task that meets its time limit is queued again; 0 = never")
    grace: int = setting(120, help="Slurm: seconds before the time limit at which a task is told to end")
    queue: str = setting("", help="AWS Batch: job queue")
    definition: str = setting("", help="AWS Batch: job definition, which names the image and the volumes")


@dataclass(frozen=True)
class Profile:
    """Resources by stage."""

    stages: dict[str, Resources]

    def __getitem__(self, stage: str) -> Resources:
        return self.stages[stage]


def load_profile(name_or_path: str | None) -> Profile:
    """Reads a profile; None is one of defaults alone.

    Raises:
        InputError: not found, or not TOML.
        UsageError: a key or table that does not exist, a value of the wrong type or below zero.
    """
    if name_or_path is None:
        return Profile(dict.fromkeys(STAGES, Resources()))
    path = find_toml(name_or_path, "stages/cluster")
    content = read_toml(path)
    tables = {name: content.pop(name) for name in list(content) if isinstance(content[name], dict)}
    for name in tables:
        if name not in STAGES:
            raise UsageError(f"{path}: unknown table {name!r}", f"Known are: {', '.join(STAGES)}")
    common = _checked(content, str(path))
    own = {name: _checked(table, f"{path}: [{name}]") for name, table in tables.items()}
    return Profile({stage: Resources(**{**common, **own.get(stage, {})}) for stage in STAGES})


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values as fields of `Resources`."""
    fields = {field.name: field for field in dataclasses.fields(Resources)}
    checked = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0.5)
            raise UsageError(
                f"{where} has no key {key!r}",
                f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(fields)}",
            )
        default: Any = fields[key].default
        if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = tuple(value)
        if type(value) is not type(default) or (isinstance(value, int) and value < 0):
            raise UsageError(f"{where} {key} = {value!r} cannot be", fields[key].metadata["help"])
        if key in ("processes", "cpus") and value == 0:
            raise UsageError(f"{where} {key} = 0 cannot be", fields[key].metadata["help"])
        checked[key] = str(Path(value).expanduser()) if key == "venv" and value else value
    return checked
