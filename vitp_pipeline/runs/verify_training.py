"""Check the files of a training against the digests in its done.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runs.repair import Damage, Fix, puts_back, removes
from vitp_pipeline.storage.copies import copies_in, keep_copies
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.layout import open_plain
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import unseal

MODEL = "model.safetensors"
OTHER_EPOCH = (
    "No stage reads it unless you name it: do without it, or remove the training's folder and train again, which makes "
    "the same model"
)
"""Advice for a damaged best.safetensors or last.safetensors that is nowhere else."""


def check_training(run: StageRun) -> Iterator[Damage]:
    """List the damage of a training; an unfinished one only has a checkpoint."""
    store, folder = run.store, run.folder
    checkpoint = folder / "checkpoint.pt"
    if store.exists(checkpoint):
        from vitp_pipeline.classifier.training.checkpoints import checkpoint_is_whole

        if not checkpoint_is_whole(store.fetch(checkpoint)):
            yield Damage(checkpoint, "its checksum does not match", folder, None, removes(store, checkpoint))
    try:
        kept = copies_in(store, folder)
    except CorruptError:
        kept = {}  # `read_plan` says so
    done = folder / "done.json"
    if not store.exists(done) and (done.name not in kept or "lock" in store.list(folder)):
        return  # with a lock: a task was killed just before its end
    try:
        said = run.read_done()
    except CorruptError as error:
        said = _copied(run, kept, done)
        yield Damage.of(error, done, folder, puts_back(store, done, kept) if said else None)
    files: dict[str, str] = said.get("files", {})
    bad = {name: reason for name, digest in files.items() if (reason := _wrong(store, folder / name, digest))}
    for name, reason in bad.items():
        fix, hint = puts_back(store, folder / name, kept), Damage.hint
        if name == MODEL:
            fix = _trains_anew(run)
        elif name.endswith(".safetensors"):
            hint, same = OTHER_EPOCH, MODEL not in bad and files[name] == files.get(MODEL)
            fix = _from_the_model(store, folder / name) if same else None
        yield Damage(folder / name, reason, folder, None, fix, name == MODEL, hint)


def _wrong(store: RunStore, path: Path, digest: str) -> str:
    if not store.exists(path):
        return "is missing"
    return "" if file_digest(store.fetch(path)) == digest else "its checksum does not match"


def _copied(run: StageRun, kept: dict[str, str], done: Path) -> dict[str, Any]:
    try:
        return run.end_of(unseal(kept[done.name], done), done) if done.name in kept else {}
    except CorruptError:
        return {}


def _from_the_model(store: RunStore, path: Path) -> Fix:
    """Copy model.safetensors, which is the same."""

    def fix() -> None:
        with open_plain(store.fetch(path.with_name(MODEL))) as file:
            store.write(path, file.read())

    return fix


def _trains_anew(run: StageRun) -> Fix:
    """Remove a damaged model and the done.json of its training, so that it is trained again."""
    store, folder = run.store, run.folder

    def fix() -> None:
        with store.locked(folder / "lock", wait=False):
            keep_copies(store, folder, ["run.json"])
            store.remove(folder / "done.json")
            store.remove(folder / MODEL)

    return fix
