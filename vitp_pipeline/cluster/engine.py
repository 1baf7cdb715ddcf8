"""Engines that run a chain: a scheduler, this machine, or a service whose files a person submits. Their registry."""

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
    """A chain that is to be run.

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
        submit: runs the chain, or hands it on. Raises UserError where that is refused.
        plan: says what `submit` would do, and writes nothing.
        here: whether tasks start in this file system, so that paths are made absolute, and the run is begun. Else files
            are printed, which a person submits.
        shards: of a new run where nobody says how many; None: that must be said.
        takes_workers: whether it starts processes on this machine, of which `--workers` says how many, and reads no
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
