"""What a training writes beside its results costs it nothing where it cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
from vitp_pipeline.storage.run_store import LocalStore


@pytest.mark.parametrize("fails", ["add_scalar", "flush"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_a_training_does_not_need_its_curves(
    fails: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def call(name: str) -> None:
        calls.append(name)
        if name == fails:
            raise OSError(number, os.strerror(number))

    files = TrainingFolder(LocalStore(tmp_path), tmp_path)
    writer = SimpleNamespace(add_scalar=lambda *_: call("add_scalar"), flush=lambda: call("flush"))
    files.__dict__["_tensorboard"] = writer
    for step in (1, 2):
        files.log({"step": step, "loss": 0.5})
    assert len(files.metrics.read_text().splitlines()) == 2 and calls.count(fails) == 1
    assert capsys.readouterr().err.count("no curves from here on") == 1
