"""Registry of engines that run a chain: a scheduler, this machine, or a service whose files the user submits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp_pipeline.cluster.plan import Chain
from vitp_pipeline.cluster.profile import Profile
from vitp_pipeline.validation.registry import Registry


@dataclass(frozen=True)
class Work:
    """A chain to run.

    Attributes:
        workers: processes on this machine; None = as many as fit.
        show_figures: whether the last job's figures go to standard output.
    """

    chain: Chain
    profile: Profile
    out: Path
    workers: int | None = None
    show_figures: bool = True


@dataclass(frozen=True)
class Handed:
    """Result of an engine, or of its dry run.

    Attributes:
        text: for people.
        about: for --json.
        check: raises UserError where tasks that have ended failed.
    """

    text: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Engine:
    """A way to run chains.

    Attributes:
        submit: runs or submits the chain. Raises UserError if that is refused.
        plan: describes what `submit` would do; writes nothing.
        here: whether tasks run in this file system: paths are then made absolute and the run created. Else files are
            printed for the user to submit.
        shards: default number of a new run; None: the user must give it.
        takes_workers: whether it starts processes on this machine, as many as `--workers` says, and reads no
            profile.
    """

    submit: Callable[[Work], Handed]
    plan: Callable[[Work], Handed]
    here: bool = True
    shards: Callable[[int | None], int] | None = None
    takes_workers: bool = False


ENGINES: Registry[Engine] = Registry(
    "engine", "vitp_pipeline.cluster.slurm", "vitp_pipeline.cluster.local", "vitp_pipeline.cluster.templates"
)
