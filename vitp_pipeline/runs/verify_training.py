"""Check that a training is as it was written: its done.json names the digest of every file that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runs.repair import Damage, Fix, removes
from vitp_pipeline.storage.copies import copies_in, keep_copies, restore
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import unseal

MODEL = "model.safetensors"


def check_training(run: StageRun) -> Iterator[Damage]:
    """Damage of a training; one that has not ended has a checkpoint alone."""
    store, folder = run.store, run.folder
    checkpoint = folder / "checkpoint.pt"
    if store.exists(checkpoint):
        from vitp_pipeline.classifier.training.checkpoints import checkpoint_is_whole

        if not checkpoint_is_whole(store.fetch(checkpoint)):
            yield Damage(checkpoint, "its checksum does not fit", folder, None, removes(store, checkpoint))
    done = folder / "done.json"
    if not store.exists(done):
        return
    try:
        kept = copies_in(store, folder)
    except CorruptError:
        kept = {}  # `read_plan` says so
    try:
        said = run.read_done()
    except CorruptError as error:
        said = _copied(kept, done)
        yield Damage.of(error, done, folder, _puts_back(store, done, kept) if said else None)
    for name, digest in said.get("files", {}).items():
        path = folder / name
        reason = ""
        if not store.exists(path):
            reason = "is missing"
        elif file_digest(store.fetch(path)) != digest:
            reason = "its checksum does not fit"
        if reason:
            fix = _trains_anew(run) if name == MODEL else _puts_back(store, path, kept)
            if fix is None:
                reason += "; no stage reads this file"
            yield Damage(path, reason, folder, None, fix, name == MODEL)


def _copied(kept: dict[str, str], done: Path) -> dict[str, Any]:
    try:
        return unseal(kept[done.name], done) if done.name in kept else {}
    except CorruptError:
        return {}


def _puts_back(store: RunStore, path: Path, kept: dict[str, str]) -> Fix | None:
    return (lambda: restore(store, path, kept[path.name])) if path.name in kept else None


def _trains_anew(run: StageRun) -> Fix:
    """Removes a model that is none any more, and that the training has ended."""
    store, folder = run.store, run.folder

    def fix() -> None:
        with store.locked(folder / "lock", wait=False):
            keep_copies(store, folder, ["run.json"])
            store.remove(folder / "done.json")
            store.remove(folder / MODEL)

    return fix
