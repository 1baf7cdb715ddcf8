"""Read run.json, the reference for checking a stage's files, and decide whether it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitp_pipeline.artifacts.run import StageRun, stage_of
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runs.repair import Damage, rebuilds_copies
from vitp_pipeline.storage.copies import COPIES, copies_in, restore
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import read_sealed, read_text, unseal


@dataclass(frozen=True)
class Plan:
    """Findings about a stage's run.json.

    Attributes:
        run: the stage; None if neither run.json nor its copy is usable.
        damages: of run.json and copies.json.
    """

    folder: Path
    run: StageRun | None
    damages: list[Damage] = field(default_factory=list)


def read_plan(store: RunStore, folder: Path) -> Plan:
    """Read the stage in a folder from its run.json or, if that is damaged, the copy; if both are intact and differ,
    by the one that the stage's files name.
    """
    path = folder / "run.json"
    text, reason, kept = "", None, {}
    copies_reason: CorruptError | None = None
    try:
        text = read_text(store.fetch(path))
    except CorruptError as error:
        reason = error
    try:
        kept = copies_in(store, folder)
    except CorruptError as error:
        copies_reason = error
    own, own_reason = _stage(store, folder, text) if reason is None else (None, reason)
    copy, _ = _stage(store, folder, kept["run.json"]) if "run.json" in kept else (None, None)
    if own is None:
        fix = None if copy is None else (lambda: restore(store, path, kept["run.json"]))
        assert own_reason is not None
        damages = [Damage.of(own_reason, path, folder, fix)]
        if copies_reason is not None:
            damages.append(Damage.of(copies_reason, folder / COPIES, folder))
        return Plan(folder, copy, damages)
    if copies_reason is not None:
        return Plan(folder, own, [Damage.of(copies_reason, folder / COPIES, folder, rebuilds_copies(own))])
    if COPIES not in store.list(folder):
        if _witness(store, folder) is None:  # nothing is made yet
            return Plan(folder, own)
        missing = Damage(folder / COPIES, "is missing", folder, None, rebuilds_copies(own))
        return Plan(folder, own, [missing])
    if copy is not None and copy.digest == own.digest:
        if "done.json" in kept or "done.json" not in store.list(folder):
            return Plan(folder, own)
        return Plan(folder, own, [Damage(folder / COPIES, "lacks files", folder, None, rebuilds_copies(own))])
    if copy is not None and _witness(store, folder) == copy.digest:
        other = Damage(path, "is another run's", folder, None, lambda: restore(store, path, kept["run.json"]))
        return Plan(folder, copy, [other])
    return Plan(folder, own, [Damage(folder / COPIES, "is another run's", folder, None, rebuilds_copies(own))])


def _stage(store: RunStore, folder: Path, text: str) -> tuple[StageRun | None, CorruptError | None]:
    """Parse the text of a run.json; return the stage, or the reason why it is damaged. Raises IncompatibleError."""
    try:
        run = stage_of(store, folder, unseal(text, folder / "run.json"))
    except CorruptError as error:
        return None, error
    return run, None


def _witness(store: RunStore, folder: Path) -> str | None:
    """Return the plan that the first intact file of a stage was made for; None without one."""
    from vitp_pipeline.artifacts.parts import RUN, read_index

    shards = [folder / "shards" / name for name in store.folders(folder / "shards")]
    for place in (folder, *shards):
        for name in store.list(place):
            try:
                if name == "done.json":
                    return str(read_sealed(store.fetch(place / name))["run"])
                if name.startswith("part-") and name.endswith(".parquet"):
                    digest: bytes = (read_index(store.fetch(place / name), []).schema.metadata or {})[RUN]
                    return digest.decode(errors="replace")
            except (CorruptError, KeyError):
                continue
    return None
