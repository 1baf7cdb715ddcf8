"""What a training keeps on disk while it runs: one checkpoint, and a line of figures an epoch."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitp_pipeline.artifacts.files import refusals, write_whole
from vitp_pipeline.errors import CorruptError


@dataclass(frozen=True)
class TrainingFolder:
    """`checkpoint.pt` and `metrics.jsonl` of a training."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint. Raises StorageError; the last one is then still good."""
        content = io.BytesIO()
        torch.save(state, content)  # through memory: to a full disk torch would raise an error of its own
        write_whole(self.checkpoint, lambda unfinished: unfinished.write_bytes(content.getbuffer()))

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The checkpoint, or None before the first. Raises CorruptError."""
        if not self.checkpoint.exists():
            return None
        try:
            return torch.load(self.checkpoint, map_location=device, weights_only=True)
        except Exception as error:  # unpickling fails in many ways
            raise self.damaged(error) from error

    def damaged(self, error: Exception) -> CorruptError:
        reason = (str(error).splitlines() or [repr(error)])[0]
        return CorruptError(f"{self.checkpoint}: damaged ({reason})", "Remove it to train from the start")

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl; it needs a key `step`."""
        with refusals(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def cut_log(self, step: int) -> None:
        """Lines of epochs after the checkpoint will be written again; drops them, and a torn last one."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue
        write_whole(self.metrics, lambda unfinished: unfinished.write_text("".join(kept), encoding="utf-8"))
