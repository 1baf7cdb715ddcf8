"""Files of a training while it runs: a checkpoint, the best model so far, and a line of figures an epoch.

The checkpoint ends with its own SHA-256, which torch does not look at, and holds the lines too: metrics.jsonl is only
written, never read again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.weights import load_classifier, save_classifier
from vitp_pipeline.decoding.torch_file import read_torch_file
from vitp_pipeline.errors import CorruptError, InputError
from vitp_pipeline.runtime.distributed import Distributed
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.digests import fetch_classifier, require_recorded
from vitp_pipeline.storage.layout import open_plain
from vitp_pipeline.storage.locks import Lock
from vitp_pipeline.storage.run_store import RunStore


@dataclass(frozen=True)
class TrainingFolder:
    """`checkpoint.pt`, `metrics.jsonl` and models of a training; where the package tensorboard is installed, also
    `tensorboard/`, with the same figures.

    Attributes:
        store: of the run.
        about: content of the .json beside a model.
        lock: held on the folder; looked at before a checkpoint is written.
        lines: of metrics.jsonl.
    """

    store: RunStore
    path: Path
    about: dict[str, Any] = field(default_factory=dict)
    lock: Lock | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint. Raises StorageError; the last one is then still good.

        Raises LockedError when another task has taken the training over.
        """
        if self.lock is not None:
            self.lock.check()
        content = io.BytesIO()
        # through memory: on a full disk torch raises an error of its own
        torch.save({**state, "metrics": self.lines}, content)
        digest = hashlib.sha256(content.getbuffer()).digest()
        content.seek(0, os.SEEK_END)
        content.write(_SEAL + digest)
        self.store.write(self.checkpoint, content.getbuffer())

    def load(self) -> dict[str, Any] | None:
        """Read the checkpoint, its tensors on the CPU; None before the first. Raises CorruptError."""
        if not self.store.exists(self.checkpoint):
            return None
        self.store.fetch(self.checkpoint)
        if not checkpoint_is_whole(self.checkpoint):
            raise self.damaged(ValueError("its checksum does not match"))
        try:
            state = read_torch_file(self.checkpoint, self.checkpoint.read_bytes())
            self.lines[:] = state["metrics"]
            return dict(state)
        except (InputError, OSError, TypeError, KeyError) as error:
            raise self.damaged(error) from error

    def require_shared(self, distributed: Distributed, step: int) -> None:
        """Raise InputError when this process has found another checkpoint than process 0."""
        if distributed.share(step) != step:
            raise InputError(f"{self.path}: not the same folder for all processes", "Choose --out on a shared disk")

    def damaged(self, error: Exception) -> CorruptError:
        reason = (str(error).splitlines() or [repr(error)])[0]
        return CorruptError(f"{self.checkpoint}: damaged ({reason})", "Remove it to train from the start")

    def save_model(self, model: PointViT, name: str, about: dict[str, Any]) -> None:
        """Write NAME.safetensors and NAME.json. Raises StorageError."""
        path = self.path / f"{name}.safetensors"
        save_classifier(model, path, {**self.about, **about})
        self.store.publish(path)
        self.store.publish(path.with_suffix(".json"))

    def load_model(self, name: str) -> PointViT | None:
        """Load the model saved under a name, in eval mode on the CPU; None when there is none. Raises CorruptError."""
        path = self.path / f"{name}.safetensors"
        return load_classifier(fetch_classifier(self.store, path)) if self.store.exists(path) else None

    def is_whole(self, name: str) -> bool:
        """True if a saved model is complete: its two files, written one after the other, belong together."""
        path = fetch_classifier(self.store, self.path / f"{name}.safetensors")
        try:
            require_recorded(path)
        except CorruptError:
            return False
        return path.exists()

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; it needs a key `step`."""
        self.lines.append(line)
        self.write_log()
        try:
            self._draw(line)
        except OSError as error:  # curves for people: the training does not need them
            say(f"{self.path / 'tensorboard'}: cannot be written ({error.strerror}); no curves from here on")
            self.__dict__["_tensorboard"] = None

    def write_log(self) -> None:
        """Write metrics.jsonl with the lines up to now. Raises StorageError."""
        text = "".join(f"{json.dumps(line)}\n" for line in self.lines)
        self.store.write(self.metrics, text)

    def _draw(self, line: dict[str, Any]) -> None:
        if self._tensorboard is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(name, value, line["step"])
            self._tensorboard.flush()

    @cached_property
    def _tensorboard(self) -> Any:
        if find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path / "tensorboard"))


_SEAL = b"vitp-sha256:"
_SEAL_LENGTH = len(_SEAL) + hashlib.sha256().digest_size


def checkpoint_is_whole(path: Path) -> bool:
    """True if a checkpoint is as it was written."""
    with open_plain(path) as file:
        left = max(0, file.seek(0, os.SEEK_END) - _SEAL_LENGTH)
        file.seek(0)
        digest = hashlib.sha256()
        while left and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
        return file.read() == _SEAL + digest.digest()
