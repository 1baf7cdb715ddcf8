"""Repair damage for `vitp verify --repair`: restore a copy, or remove what a rerun makes again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import UserError
from vitp_pipeline.execution.runner import finish_shard, forget_end, forget_part
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.copies import LAST, keep_copies, restore
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged, read_sealed

Fix = Callable[[], object]


@dataclass(frozen=True)
class Damage:
    """A file that changed since it was written, or is missing.

    Attributes:
        path: the file.
        reason: what is wrong with it.
        stage: the folder of the stage that it belongs to.
        shard: the shard that it belongs to.
        fix: repairs it, or lets a rerun of the stage do so; None = not repairable here.
        rerun: whether a rerun is needed.
        hint: advice to the user if it cannot be repaired here.
    """

    path: Path
    reason: str
    stage: Path
    shard: int | None = None
    fix: Fix | None = None
    rerun: bool = False
    hint: str = "Remove that stage's folder and run it again; one that is being worked on: verify again later"

    @staticmethod
    def of(
        error: UserError,
        path: Path,
        stage: Path,
        fix: Fix | None = None,
        shard: int | None = None,
        rerun: bool = False,
    ) -> Damage:
        """Make it from an error about a file, or about something in that folder."""
        return Damage(path, error.message.removeprefix(f"{path}: "), stage, shard, fix, rerun)


def repair(damages: list[Damage]) -> list[Damage]:
    """Repair what can be repaired, in order, while no task works there. Returns what could not be repaired."""
    left = []
    for damage in damages:
        try:
            if damage.fix is None:
                left.append(damage)
            else:
                damage.fix()
        except UserError as error:
            say(str(error))
            left.append(damage)
    return left


def removes(store: RunStore, path: Path) -> Fix:
    """Remove a file that is derived from others, or only a cache."""
    return lambda: store.remove(path)


def remakes_part(run: StageRun, shard: int, part: int, without: Path) -> Fix:
    """Remove a part, so that the stage makes it again.

    Args:
        without: the damaged file, which is removed, too.
    """

    def fix() -> None:
        forget_part(run, shard, part)
        run.store.remove(without)

    return fix


def forgets_end(run: StageRun, shard: int) -> Fix:
    """Remove the files derived from the parts of a shard."""

    def fix() -> None:
        with run.store.locked(run.shard_folder(shard) / "lock", wait=False):
            forget_end(run, shard)

    return fix


def writes_end(run: StageRun, shard: int) -> Fix:
    """Rewrite the done.json of a shard from its parts."""

    def fix() -> None:
        with run.store.locked(run.shard_folder(shard) / "lock", wait=False):
            finish_shard(run, shard)

    return fix


def puts_back(store: RunStore, path: Path, copies: dict[str, str]) -> Fix | None:
    """Restore a file from its copy; None without a copy."""
    return (lambda: restore(store, path, copies[path.name])) if path.name in copies else None


def rebuilds_copies(run: StageRun) -> Fix:
    """Rebuild the copies of a stage's small files; those of a finished training as its done.json names them."""

    def fix() -> None:
        small, store = {}, run.store
        if store.exists(run.folder / "done.json"):
            files = run.read_done()["files"]
            small = {name: digest for name, digest in files.items() if not name.endswith(".safetensors")}
        for name, digest in small.items():
            path = run.folder / name
            if not store.exists(path) or file_digest(store.fetch(path)) != digest:
                raise damaged(path, "is damaged, and so is its copy")
        last = [name for name in LAST if store.exists(run.folder / name)]
        for name in last:
            read_sealed(store.fetch(run.folder / name))
        keep_copies(store, run.folder, ["run.json", *(["done.json"] if small else []), *small, *last])

    return fix
