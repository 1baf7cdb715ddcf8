"""What `verify` says of a training, and puts right: models of a few kilobytes, ended as `train-classifier` ends one."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.classifier.making import tiny_model
from tests.faults.test_damage import KINDS
from tests.local_runs import create_or_check, open_run
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.classifier.weights import save_classifier
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.status import run_status
from vitp_pipeline.runs.verify import print_damages, report, verify_run
from vitp_pipeline.stages.train_classifier import _end
from vitp_pipeline.storage.sealed import read_sealed, write_sealed

FOLDER = "classifier/default"


def trained(root: Path, best: int = 0, other: str = "best") -> StageRun:
    """A finished training. Its model has the weights of seed 0, that of the other epoch those of seed `best`."""
    folder = root / FOLDER
    run = create_or_check(folder, {"stage": "classifier"}, ("a", "b"))
    save_classifier(tiny_model(0), folder / "model.safetensors", {"images": 2})
    save_classifier(tiny_model(best), folder / f"{other}.safetensors", {"epoch": 1})
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    _end(run, TrainSettings(keep="best" if other == "last" else "last", hold_out=1), {"images": 2, "left_out": {}})
    return open_run(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    trained(root)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (root / FOLDER).iterdir()}


def bad_files(root: Path) -> list[str]:
    return [d.path.relative_to(root / FOLDER).as_posix() for d in verify_run(root).damages]


def test_a_whole_one(whole: Path) -> None:
    assert bad_files(whole) == [] and run_status(whole)[0]["bytes"] == len(files(whole)["model.safetensors"])


@pytest.mark.parametrize("kind", [*KINDS, "removed"])
@pytest.mark.parametrize("name", ["best.safetensors", "best.json", "done.json", "model.json", "metrics.jsonl"])
def test_what_can_be_told_comes_back(whole: Path, tmp_path: Path, name: str, kind: str) -> None:
    root = shutil.copytree(whole, tmp_path / "run")
    path, good = root / FOLDER / name, files(whole)
    path.unlink() if kind == "removed" else path.write_bytes(KINDS[kind](good[name], random.Random(name)))
    assert bad_files(root) == [name]
    assert repair(verify_run(root).damages) == [] and files(root) == good and bad_files(root) == []


@pytest.mark.parametrize("other", ["best", "last"])
def test_weights_that_are_nowhere_else(tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The line says what to do, and nothing is removed."""
    trained(tmp_path, best=1, other=other)
    path = tmp_path / FOLDER / f"{other}.safetensors"
    good = path.read_bytes()
    for bad in (good[:-1], b"", good.replace(b"float", b"flout", 1), None):
        path.unlink() if bad is None else path.write_bytes(bad)
        if bad == good:
            continue
        before = files(tmp_path)
        print_damages((checked := verify_run(tmp_path)).damages)
        (line,) = capsys.readouterr().out.splitlines()
        assert str(path) in line and "do without it, or remove the training's folder and train again" in line
        with pytest.raises(CorruptError, match=rf"{other}\.safetensors: .*cannot be repaired.*No stage reads it"):
            report(tmp_path, checked, repair(checked.damages))
        assert files(tmp_path) == before


def test_other_weights_are_not_put_in_the_place_of_lost_ones(tmp_path: Path) -> None:
    """Where the model itself is damaged."""
    run = trained(tmp_path)
    best, model = run.folder / "best.safetensors", run.folder / "model.safetensors"
    best.unlink()
    model.write_bytes(model.read_bytes()[:-4] + b"\0\0\0\1")
    assert {d.path.name: d.fix is not None for d in verify_run(tmp_path).damages} == {
        model.name: True,
        best.name: False,
    }


def test_an_end_that_was_not_yet_is_not_missed(whole: Path, tmp_path: Path) -> None:
    """A task that is killed between the copy of its end and the end itself leaves its lock; the next one ends it."""
    root = shutil.copytree(whole, tmp_path / "run")
    (root / FOLDER / "done.json").unlink()
    (root / FOLDER / "lock").touch()
    assert bad_files(root) == []


ODD = {
    "no run": lambda said: said.pop("run"),
    "no images": lambda said: said.pop("images"),
    "no files": lambda said: said.pop("files"),
    "no bytes": lambda said: said.pop("bytes"),
    "no left_out": lambda said: said.pop("left_out"),
    "nothing": lambda said: said.clear(),
    "run null": lambda said: said.update(run=None),
    "images text": lambda said: said.update(images="2"),
    "images below 0": lambda said: said.update(images=-1),
    "images real": lambda said: said.update(images=1.5),
    "bytes a list": lambda said: said.update(bytes=[1]),
    "files null": lambda said: said.update(files=None),
    "files a list": lambda said: said.update(files=["model.safetensors"]),
    "files of numbers": lambda said: said.update(files={"model.safetensors": 1}),
    "left_out text": lambda said: said.update(left_out="a"),
    "left_out of null": lambda said: said.update(left_out={"a": None}),
    "left_out deep": lambda said: said.update(left_out={"a": {"b": []}}),
    "another run": lambda said: said.update(run="0" * 64),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_end_is_one_line(whole: Path, tmp_path: Path, odd: str) -> None:
    """Sealed, but not as vitp writes it: a key gone, or a value of another type."""
    root = shutil.copytree(whole, tmp_path / "run")
    path, good = root / FOLDER / "done.json", files(root)
    said = read_sealed(path)
    ODD[odd](said)
    write_sealed(path, said)
    for look in (lambda: run_status(root), lambda: open_run(root / FOLDER).read_done()):
        with pytest.raises(CorruptError, match=r"done\.json: ") as info:
            look()
        assert "\n" not in str(info.value) and info.value.exit_code == 6
    assert bad_files(root) == ["done.json"]
    assert repair(verify_run(root).damages) == [] and files(root) == good
