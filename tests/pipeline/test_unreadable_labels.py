"""Labels that mostly cannot be read: refused before a training, or in its course, and its name stays free."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.conftest import Project
from vitp_pipeline.classifier.training.readable import UnreadableError, require_readable
from vitp_pipeline.classifier.training.sampling import NO_LABEL
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.errors import InputError, PartialError
from vitp_pipeline.runs.status import run_status


def wrong_size(path: Path) -> None:
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(path)


def unknown_ids(path: Path) -> None:
    Image.fromarray(np.full((192, 256, 3), 77, np.uint8)).save(path)


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "labels torn": ("panoptic_train", lambda path: path.write_bytes(path.read_bytes()[:60])),
    "labels missing": ("panoptic_train", Path.unlink),
    "labels of another size": ("panoptic_train", wrong_size),
    "labels with ids that nobody knows": ("panoptic_train", unknown_ids),
    "images torn": ("images/train", lambda path: path.write_bytes(path.read_bytes()[:60])),
}


@pytest.fixture
def own(project: Project, tmp_path: Path) -> Project:
    shutil.copytree(project.data, tmp_path / "scenes")
    return Project(tmp_path / "scenes", project.recipe)


def spoil(project: Project, name: str, count: int) -> None:
    folder, fault = FAULTS[name]
    for path in sorted((project.data / folder).iterdir())[:count]:
        fault(path)


@pytest.mark.parametrize("name", FAULTS)
def test_refused_before_anything_is_trained(name: str, own: Project, tmp_path: Path) -> None:
    spoil(own, name, 9)
    with pytest.raises(UnreadableError, match=r"labels do not fit: [1-9] of 10 images .*at most 5%.*, the first: "):
        own.run("train-classifier", tmp_path / "run", hold_out=0)
    assert not list((tmp_path / "run").rglob("run.json"))


@pytest.mark.parametrize("changes", [{}, {"fit": "lda", "head": "linear", "norm": "none", "epochs": 1}], ids=str)
def test_refused_in_its_course_and_the_name_stays_free(
    changes: dict[str, str | int], own: Project, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images that are looked at first are all good; the others are not."""
    spoil(own, "labels torn", 9)
    monkeypatch.setattr("vitp_pipeline.classifier.training.readable.check_annotations", lambda *given: None)
    with pytest.raises(UnreadableError, match="labels do not fit"):
        own.run("train-classifier", tmp_path / "run", hold_out=0, **changes)
    with pytest.raises(InputError):
        run_status(tmp_path / "run")
    monkeypatch.undo()
    project.run("train-classifier", tmp_path / "run", epochs=1, hold_out=0)
    (entry,) = run_status(tmp_path / "run")
    assert (entry["shards_done"], entry["failed"]) == (1, 0)


def test_what_was_trained_before_is_kept(own: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is gone for a while must not cost a training."""
    from vitp_pipeline.classifier.training import loop

    calls = []

    def stop() -> bool:
        calls.append(None)
        return len(calls) == 4

    monkeypatch.setattr(loop, "stop_wanted", stop)
    with pytest.raises(Exception, match="stopped"):
        own.run("train-classifier", tmp_path / "run", hold_out=0)
    folder = tmp_path / "run/classifier/default"
    before = (folder / "checkpoint.pt").read_bytes()
    good = {path: path.read_bytes() for path in (own.data / "images/train").iterdir()}
    spoil(own, "images torn", 9)
    with pytest.raises(UnreadableError):
        own.run("train-classifier", tmp_path / "run", hold_out=0)
    assert (folder / "checkpoint.pt").read_bytes() == before
    for path, content in good.items():
        path.write_bytes(content)
    own.run("train-classifier", tmp_path / "run", hold_out=0)
    assert run_status(tmp_path / "run")[0]["shards_done"] == 1


def test_a_single_file_is_left_out_and_shown_in_status(own: Project, tmp_path: Path) -> None:
    spoil(own, "labels torn", 1)
    with pytest.raises(PartialError, match="trained without 1 image"):
        own.run("train-classifier", tmp_path / "run", epochs=1, hold_out=0)
    (entry,) = run_status(tmp_path / "run")
    assert entry["failed"] == 1 and "panoptic_train" in entry["failed_images"][0][1]


@pytest.mark.parametrize(
    ("unreadable", "unlabeled", "images", "refused"),
    [(1, 0, 1, False), (1, 5, 3, False), (2, 0, 40, False), (3, 0, 40, True), (5, 90, 100, False), (6, 0, 100, True)],
)
def test_the_share(unreadable: int, unlabeled: int, images: int, refused: bool, project: Project) -> None:
    dataset = Dataset(load_manifest("demo"), project.data, "train")
    left_out = {f"u{n}": "torn" for n in range(unreadable)} | {f"n{n}": NO_LABEL for n in range(unlabeled)}
    if refused:
        with pytest.raises(UnreadableError, match=f"{unreadable} of {images}"):
            require_readable(left_out, images, dataset)
    else:
        require_readable(left_out, images, dataset)
