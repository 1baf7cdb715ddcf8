"""A cluster profile: resources and setup of tasks, as one TOML file.

Keys at the top hold for every stage, a table named after a stage (or `merge`, or `predict`) overrides them for it. An
example lies in stages/cluster/.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.errors import UsageError
from vitp_pipeline.shipped import find_toml, read_toml
from vitp_pipeline.validation.constraints import Count, within
from vitp_pipeline.validation.keys import DRAFT, Key, schema_of
from vitp_pipeline.validation.tables import checked, did_you_mean, table

STAGES = (*TABLES, "merge", "predict")
"""The jobs of chains; `merge` is the last `vitp evaluate`, which adds up what the tasks measured."""

Lines = tuple[str, ...]


@table
class Resources:
    """Resources of one task of a stage."""

    partition: Annotated[str, Key("Slurm partition.")] = ""
    account: Annotated[str, Key("Slurm account.")] = ""
    gpus: Annotated[int, within(0, 1024), Key("GPUs of a task.", "GPUs")] = 0
    cpus: Annotated[
        int, within(1, 4096), Key("Cores and threads of a task; in Slurm of each process of a training.", "cores")
    ] = 1
    memory_gb: Annotated[int, within(0, 10**6), Key("Memory of a task; 0 = the cluster's default.", "GB")] = 0
    minutes: Annotated[int, within(0, 10**6), Key("Time limit of a task; 0 = the cluster's default.", "minutes")] = 0
    throttle: Annotated[Count, Key("Tasks of an array at once; 0 = as many as there is room for.", "tasks")] = 0
    max_array_size: Annotated[Count, Key("MaxArraySize of Slurm; 0 = ask scontrol.", "tasks")] = 0
    processes: Annotated[
        int, within(1, 4096), Key("Processes of a training task: by srun in Slurm, by torchrun elsewhere.", "processes")
    ] = 1
    image: Annotated[str, Key("Container image; Slurm runs it with apptainer.")] = ""
    binds: Annotated[Lines, Key("Folders that apptainer binds into the image.")] = ()
    venv: Annotated[str, Key("Virtual environment to activate; default without an image: that of `vitp submit`.")] = ""
    modules: Annotated[Lines, Key("Modules for `module load`.")] = ()
    setup: Annotated[Lines, Key("Further shell lines before vitp starts.")] = ()
    options: Annotated[Lines, Key('Further options of sbatch, such as "--constraint=a100".')] = ()
    claim: Annotated[str, Key("Kubernetes: PersistentVolumeClaim with data and run.")] = ""
    mount: Annotated[str, Key("Kubernetes: mount path of the claim in the container.")] = "/data"
    requeues: Annotated[
        Count, Key("Slurm: how often a task that reaches its time limit is requeued; 0 = never.", "times")
    ] = 20
    grace: Annotated[
        int,
        within(0, 86400),
        Key("Slurm: time before the limit at which a task is asked to stop; 0 = never.", "seconds"),
    ] = 120
    queue: Annotated[str, Key("AWS Batch: job queue.")] = ""
    definition: Annotated[str, Key("AWS Batch: job definition, which names the image and the volumes.")] = ""


Profile = dict[str, Resources]
"""Resources by stage."""


def profile_schema() -> dict[str, Any]:
    """Make the JSON Schema of profiles."""
    own = schema_of(Resources)
    tables = {stage: {**own, "title": stage} for stage in STAGES}
    return {"$schema": DRAFT, **own, "title": "vitp profile", "properties": own["properties"] | tables}


def load_profile(name_or_path: str | None) -> Profile:
    """Read a profile; None gives the defaults.

    Raises:
        InputError: not found, or not TOML.
        UsageError: a key or table that does not exist, a value of the wrong type or out of range.
    """
    if name_or_path is None:
        return dict.fromkeys(STAGES, Resources())
    path = find_toml(name_or_path, "stages/cluster")
    content = read_toml(path)
    tables = {name: content.pop(name) for name in list(content) if isinstance(content[name], dict)}
    for name in tables:
        if name not in STAGES:
            raise UsageError(f"{path}: unknown table {name!r}", did_you_mean(name, STAGES))
    checked(Resources, content, str(path))  # so that a message names the place
    found = {stage: checked(Resources, content | tables.get(stage, {}), f"{path}: [{stage}]") for stage in STAGES}
    return {
        stage: replace(own, venv=str(Path(own.venv).expanduser())) if own.venv else own for stage, own in found.items()
    }
