"""Check that a training is as it was written: its done.json names the digest of every file that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runs.repair import Damage, Fix, discards
from vitp_pipeline.storage.backend import discard, there
from vitp_pipeline.storage.copies import copies_in, keep_copies, restore
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.locks import locked
from vitp_pipeline.storage.sealed import unseal

MODEL = "model.safetensors"


def check_training(run: StageRun) -> Iterator[Damage]:
    """Damage of a training; one that has not ended has a checkpoint alone."""
    folder = run.folder
    checkpoint = folder / "checkpoint.pt"
    if there(checkpoint):
        from vitp_pipeline.classifier.training.checkpoints import checkpoint_is_whole

        if not checkpoint_is_whole(checkpoint):
            yield Damage(checkpoint, "its checksum does not fit", folder, None, discards(checkpoint))
    done = folder / "done.json"
    if not there(done):
        return
    try:
        kept = copies_in(folder)
    except CorruptError:
        kept = {}  # `read_plan` says so
    try:
        said = run.read_done()
    except CorruptError as error:
        said = _copied(kept, done)
        yield Damage.of(error, done, folder, _puts_back(folder, "done.json", kept) if said else None)
    for name, digest in said.get("files", {}).items():
        path = folder / name
        reason = "is missing" if not there(path) else "" if file_digest(path) == digest else "its checksum does not fit"
        if reason:
            fix = _trains_anew(run) if name == MODEL else _puts_back(folder, name, kept)
            if fix is None:
                reason += "; no stage reads this file"
            yield Damage(path, reason, folder, None, fix, name == MODEL)


def _copied(kept: dict[str, str], done: Path) -> dict[str, Any]:
    try:
        return unseal(kept[done.name], done) if done.name in kept else {}
    except CorruptError:
        return {}


def _puts_back(folder: Path, name: str, kept: dict[str, str]) -> Fix | None:
    return (lambda: restore(folder, name, kept[name])) if name in kept else None


def _trains_anew(run: StageRun) -> Fix:
    """Removes a model that is none any more, and that the training has ended."""
    folder = run.folder

    def fix() -> None:
        with locked(folder / "lock", wait=False):
            keep_copies(folder, ["run.json"])
            discard(folder / "done.json")
            discard(folder / MODEL)

    return fix
