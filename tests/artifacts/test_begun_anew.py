"""A stage that holds nothing is no obstacle to the corrected attempt; one that holds something, or is at work, is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.local_runs import create_or_check, open_run, write_index
from vitp_pipeline.artifacts.run import StageRun, clear, require_same
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.execution.runner import run_parts
from vitp_pipeline.storage.layout import index_path
from vitp_pipeline.storage.locks import locked

WRONG, RIGHT = {"stage": "proposals", "order": "wrong"}, {"stage": "proposals", "order": "right"}
IMAGES = ("a", "b", "c")


def rows(run: StageRun, *status: str, name: str = "") -> None:
    path = index_path(run.shard_folder(0), 0)
    write_index(path.with_name(name) if name else path, pa.table({"status": list(status)}))


NOTHING: dict[str, Callable[[StageRun], object]] = {
    "only run.json": lambda run: None,
    "a lock that nobody holds": lambda run: (run.shard_folder(0).mkdir(parents=True), lock_of(run).touch()),
    "all images failed": lambda run: rows(run, "failed", "failed"),
    "all images so far failed": lambda run: rows(run, "failed", name="_partial-0000.parquet"),
    "the list of an import's masks": lambda run: (run.folder / "masks.json").write_text("{}"),
    "a temporary file": lambda run: (run.folder / ".run.json.7.tmp").touch(),
    "killed between the two files": lambda run: (run.folder / "copies.json").unlink(),
}
SOMETHING: dict[str, Callable[[StageRun], object]] = {
    "an image": lambda run: rows(run, "failed", "ok"),
    "an image of an unfinished part": lambda run: rows(run, "ok", name="_partial-0000.parquet"),
    "rows that cannot be read": lambda run: index_path(run.shard_folder(0), 0).write_bytes(b"PAR1"),
    "a checkpoint": lambda run: (run.folder / "checkpoint.pt").touch(),
    "metrics": lambda run: (run.folder / "metrics.jsonl").touch(),
    "results": lambda run: (run.folder / "result.json").touch(),
}


def lock_of(run: StageRun) -> Path:
    return run.shard_folder(0) / "lock"


@pytest.mark.parametrize("name", NOTHING)
def test_a_run_that_holds_nothing_is_begun_anew(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    NOTHING[name](create_or_check(tmp_path / "proposals", WRONG, IMAGES, 2))
    run = create_or_check(tmp_path / "proposals", RIGHT, IMAGES[:2], 1)
    assert run == open_run(tmp_path / "proposals") and (run.identity, run.images, run.shards) == (RIGHT, IMAGES[:2], 1)
    assert "begun anew" in capsys.readouterr().err
    left = {p.name for p in (tmp_path / "proposals").rglob("*") if p.is_file() and p.suffix != ".tmp"}
    assert left <= {"run.json", "copies.json", "lock"}


@pytest.mark.parametrize("name", SOMETHING)
def test_one_that_holds_something_stays(tmp_path: Path, name: str) -> None:
    run = create_or_check(tmp_path / "proposals", WRONG, IMAGES, 2)
    run.shard_folder(0).mkdir(parents=True)
    SOMETHING[name](run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(IncompatibleError, match="made with other settings"):
        create_or_check(tmp_path / "proposals", RIGHT, IMAGES, 2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("training", [False, True])
def test_one_at_which_a_task_works_stays(tmp_path: Path, training: bool) -> None:
    run = create_or_check(tmp_path / "proposals", WRONG, IMAGES, 2)
    run.shard_folder(0).mkdir(parents=True)
    with (
        locked(run.folder / "lock" if training else lock_of(run)),
        pytest.raises(IncompatibleError, match="made with other settings"),
    ):
        create_or_check(tmp_path / "proposals", RIGHT, IMAGES, 2)
    assert open_run(run.folder) == run


def test_a_task_whose_run_was_replaced_before_it_began_ends(tmp_path: Path) -> None:
    """It has opened the run, and takes its lock only after another command has begun it anew."""
    run = create_or_check(tmp_path / "proposals", WRONG, IMAGES, 1)
    require_same(run)
    other = create_or_check(tmp_path / "proposals", RIGHT, IMAGES, 1)

    def build():
        raise AssertionError("it must not work")

    with pytest.raises(IncompatibleError, match="begun it anew"):
        run_parts(run, [0], build, "test")
    assert open_run(run.folder) == other
    (run.folder / "run.json").unlink()
    with pytest.raises(IncompatibleError, match="begun it anew"):
        require_same(run)


def test_a_task_that_begins_while_the_run_is_cleared_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its lock after the first look, and has read run.json before that was gone."""
    run = create_or_check(tmp_path / "proposals", WRONG, IMAGES, 1)
    run.shard_folder(0).mkdir(parents=True)
    remove, held = type(run.store).remove, []

    def slow(store, path: Path) -> None:
        if path.name == "run.json" and not held:
            held.append(locked(lock_of(run)))
            held[0].__enter__()
            require_same(run)
        remove(store, path)

    monkeypatch.setattr(type(run.store), "remove", slow)
    try:
        assert not clear(run)
    finally:
        held[0].__exit__(None, None, None)
    assert open_run(run.folder) == run
