"""Temporary files: the killed leave some, whoever comes next removes them, and nobody removes those of the living."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.datasets.test_prepare import write_ade20k, write_cityscapes, write_coco
from tests.local_runs import create_or_check
from vitp_pipeline.datasets import load_manifest
from vitp_pipeline.datasets.prepare import prepare, work
from vitp_pipeline.inference.batch import PredictJob, predict
from vitp_pipeline.inference.image_files import Picture
from vitp_pipeline.inference.predictor import Segmentation
from vitp_pipeline.runtime.progress import hush
from vitp_pipeline.storage import temporaries
from vitp_pipeline.storage.atomic_files import write_json, write_whole
from vitp_pipeline.storage.fs_ops import fill, watched
from vitp_pipeline.storage.run_store import LocalStore
from vitp_pipeline.storage.sealed import sealed
from vitp_pipeline.storage.temporaries import HOUR, NAME_BYTES, is_abandoned, temporary, tidy


def write_files(folder: Path) -> None:
    create_or_check(folder, {"stage": "proposals"}, ("a",))
    write_json(folder / "results/a.json", {"a": 1})
    write_whole(folder / "results/a.png", lambda path: fill(path, b"png" * 50))
    write_whole(folder / "once.json", sealed(folder / "once.json", {"b": 2}), replace=False)
    write_json(folder / "results/a.json", {"a": 2})


def predict_two(folder: Path) -> None:
    """With a generator that finds everything to be of class 0."""
    spec = load_manifest("demo")
    pictures = []
    for name in ("a", "b"):
        path = folder.parent / f"images/{name}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
        pictures.append(Picture(path, name))
    found = Segmentation(spec.class_names, (), labels=np.zeros((4, 6), np.int16))
    segmenter = SimpleNamespace(rule=SimpleNamespace(object_threshold=0.8))
    predictor: Any = SimpleNamespace(spec=spec, check_tasks=len, segment=lambda *_: found, segmenter=segmenter)
    predict(pictures, lambda: predictor, PredictJob(LocalStore(folder / "out"), {}, ("semantic",)))


def prepared(dataset: str, make: Callable[[Path], object], folder: Path) -> None:
    if not (folder / "data").exists():
        make(folder / "data" / ("coco" if dataset == "coco" else ""))
    prepare(dataset, folder / "data", [], workers=1)


def results(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("run.json", "copies.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def killed_at(step: int, action: Callable[[Path], object], folder: Path) -> bool:
    """Has a process killed before the n-th of its changes to a disk; False: it ended before it came so far."""
    child = os.fork()
    if child == 0:
        seen = -1

        def kill(*_: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            hush()
            with watched(kill):
                action(folder)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize(
    ("action", "stride"),
    [
        (write_files, 1),
        (predict_two, 4),
        (partial(prepared, "coco", write_coco), 3),
        (partial(prepared, "ade20k", write_ade20k), 17),
        (partial(prepared, "cityscapes", write_cityscapes), 11),
    ],
)
def test_the_next_run_removes_what_a_killed_one_left(
    action: Callable[[Path], object], stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PART", 2)
    (tmp_path / "whole").mkdir()
    action(tmp_path / "whole")
    expected, stale, step = results(tmp_path / "whole"), 0, 0
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        if not killed_at(step, action, folder):
            break
        stale += len(list(folder.rglob("*.tmp")))
        monkeypatch.setattr(temporaries, "_tidied", set())
        action(folder)
        assert results(folder) == expected, f"killed at step {step}"
        step += stride
    assert step > 3 * stride and stale


def ago(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_whose_writer_lives(tmp_path: Path, dead: int) -> None:
    own = temporary(tmp_path / "a.json").name
    machine, _, began = own.split(".")[-2].split("-")
    age: dict[str, tuple[float, bool]] = {
        own: (0, False),
        f"b.{machine}-{os.getpid()}-{began}.tmp": (2 * HOUR, False),  # it lives, however slow it is
        f"a.{machine}-{os.getpid()}-{int(began) + 7}.tmp": (
            0,
            True,
        ),  # its number was another one's
        f"a.{machine}-{dead}-12345.tmp": (0, True),
        "a.0123abcd-17-12345.tmp": (0, False),  # of another machine: nobody knows
        "b.0123abcd-17-12345.tmp": (HOUR + 9, True),
        "a.some-host.77.tmp": (0, False),
        "b.some-host.77.tmp": (HOUR + 9, True),
        "a.tmp": (0, False),
        "\x1b\n[red].0123abcd-17-12345.tmp": (HOUR + 9, True),
    }
    for name, (seconds, _) in age.items():
        (tmp_path / name).touch()
        ago(tmp_path / name, seconds)
    assert {name: is_abandoned(tmp_path / name) for name in age} == {name: left for name, (_, left) in age.items()}
    (tmp_path / "c.0123abcd-17-12345.tmp").mkdir()
    (tmp_path / "c.0123abcd-17-12345.tmp/weights").touch()
    ago(tmp_path / "c.0123abcd-17-12345.tmp", HOUR + 9)
    (tmp_path / "kept.json").touch()
    tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "kept.json",
        *(name for name, (_, left) in age.items() if not left),
    }


def test_a_folder_that_cannot_be_tidied_is_in_nobodys_way(tmp_path: Path) -> None:
    tidy(tmp_path / "absent")
    (tmp_path / "file").touch()
    tidy(tmp_path / "file")


NAMES = st.binary(min_size=1, max_size=NAME_BYTES).filter(lambda raw: b"/" not in raw and b"\0" not in raw)


@given(NAMES, NAMES)
def test_every_name_has_a_temporary_one(one: bytes, other: bytes) -> None:
    """Also one as long as a name can be, and one that is not UTF-8."""
    names = [temporary(Path("/f") / os.fsdecode(raw)).name for raw in (one, other) if raw not in (b".", b"..")]
    assert all(len(os.fsencode(name)) <= NAME_BYTES for name in names)
    assert len(set(names)) == len(set(names if one == other else (one, other)) - {b".", b".."})


@pytest.mark.parametrize("length", [200, 240, 255])
def test_files_of_the_longest_names_are_written(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("ü" * (length // 2 - 3) + ".json")
    write_json(path, {"a": 1})
    assert write_whole(path.with_suffix(".once"), "{}", replace=False) and len(list(tmp_path.iterdir())) == 2


def test_folders_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 results in one folder each would take longer than the one before."""
    looked: list[Path] = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: looked.append(path) or iterdir(path))
    for n in range(50):
        write_json(tmp_path / f"{n}.json", {})
    assert looked == [tmp_path]
