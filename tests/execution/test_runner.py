from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster import making
from tests.disks import disk_of
from tests.local_runs import create_or_check
from tests.run_files import arrays_of
from vitp_pipeline.artifacts.parts import ArrayReader, ArrayWriter, read_index
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError, LockedError, PartialError
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.verify import report, verify_run
from vitp_pipeline.storage.layout import index_path
from vitp_pipeline.storage.locks import locked
from vitp_pipeline.storage.sealed import read_sealed


class Maker:
    """Makes an array and a row an image; `bad` images fail; `stop` is asked before every step and may raise."""

    def __init__(self, bad: set[str] = frozenset(), stop: Callable[[], None] = lambda: None) -> None:
        self.bad, self.stop, self.calls = bad, stop, []

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        self.calls.append((shard, part, tuple(images)))
        writer = ArrayWriter(arrays, {"part": part})
        try:
            for image in images:
                self.stop()
                writer.add(f"x/{image}", np.full((2, 3), int(image[1:])), ["y", "x"])
                budget.advance(1)
            self.stop()
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        self.stop()
        rows = [
            {"image_id": i, "status": "failed" if i in self.bad else "ok", "error": "torn" if i in self.bad else None}
            for i in images
        ]
        return pa.Table.from_pylist(rows, pa.schema([(n, pa.string()) for n in ("image_id", "status", "error")]))


def ids(count: int) -> tuple[str, ...]:
    return tuple(f"i{n}" for n in range(count))


def new_run(folder: Path, count: int = 7, shards: int = 2, part_size: int = 2) -> StageRun:
    return create_or_check(folder, {"stage": "t"}, ids(count), shards, part_size)


def work(run: StageRun, maker: Maker, shards: Sequence[int] | None = None, **options) -> Outcome:
    return run_parts(run, range(run.shards) if shards is None else shards, lambda: maker, "test", **options)


def content(run: StageRun) -> dict[str, bytes]:
    """Everything but the logs and what is for people."""
    apart = ("run.json", "copies.json")
    files = [p for p in run.folder.rglob("*") if p.is_file() and p.parent.name != "log" and p.name not in apart]
    return {p.relative_to(run.folder).as_posix(): p.read_bytes() for p in files}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 11), shards=st.integers(1, 5), part_size=st.integers(1, 4))
def test_every_image_is_made_once_in_order(tmp_path_factory, count: int, shards: int, part_size: int) -> None:
    run = new_run(tmp_path_factory.mktemp("run"), count, shards, part_size)
    maker = Maker()
    outcome = work(run, maker)
    assert (outcome.made, outcome.cached, outcome.failed) == (count, 0, [])
    assert tuple(i for _, _, images in maker.calls for i in images) == ids(count)
    assert all(run.finished(s) for s in range(shards))
    found = []
    for shard in range(shards):
        for part in range(len(run.parts(shard))):
            folder = run.shard_folder(shard)
            images = read_index(index_path(folder, part))["image_id"].to_pylist()
            with ArrayReader(arrays_of(folder, part)) as arrays:
                assert [int(arrays.read(f"x/{i}")[0, 0]) for i in images] == [int(i[1:]) for i in images]
            found += images
        assert not (run.shard_folder(shard) / "lock").exists()
    assert tuple(found) == ids(count)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_stopped_anywhere_then_run_again(tmp_path: Path, error: type[BaseException]) -> None:
    whole = new_run(tmp_path / "whole")
    work(whole, Maker())
    steps = 7 + 2 * 4  # one a image, two a part
    for stopped_at in range(steps):
        run = new_run(tmp_path / f"run{stopped_at}")
        left = iter(range(stopped_at))

        def stop(left=left) -> None:
            if next(left, None) is None:
                raise error

        first = Maker(stop=stop)
        with pytest.raises(error):
            work(run, first)
        committed = len(list(run.folder.rglob("*.parquet")))
        again = Maker()
        outcome = work(run, again)
        assert content(run) == content(whole)
        # only the part that was interrupted is made a second time
        assert committed == len(first.calls) - 1
        assert again.calls == [c for c in Maker_calls(run) if c not in first.calls[:-1]]
        assert outcome.made + outcome.cached == 7


def Maker_calls(run: StageRun) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(s, p, images) for s in range(run.shards) for p, images in enumerate(run.parts(s))]


def test_leavings_of_a_killed_task_are_removed(tmp_path: Path) -> None:
    whole, run = new_run(tmp_path / "whole"), new_run(tmp_path / "run")
    work(whole, Maker())
    work(run, Maker(), [0])
    folder = run.shard_folder(1)
    folder.mkdir(parents=True)
    (folder / "part-0000.zarr.zip.tmp").write_bytes(b"half")
    (folder / "part-0000-0123456789ab.zarr.zip").write_bytes(b"whole, but its index was never committed")
    (folder / "done.json.host.1.tmp").write_bytes(b"{")
    (folder / "lock").touch()
    work(run, Maker())
    assert content(run) == content(whole)


def test_a_finished_run_is_not_touched_and_builds_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run, Maker(bad={"i3"}))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}

    def build() -> Maker:
        raise AssertionError("a model would be loaded for nothing")

    outcome = run_parts(run, [0, 1], build, "test")
    assert (outcome.made, outcome.cached, outcome.failed) == (0, 7, [("i3", "torn")])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_shards_one_after_the_other_give_what_all_at_once_give(tmp_path: Path) -> None:
    whole, run = new_run(tmp_path / "whole"), new_run(tmp_path / "run")
    work(whole, Maker())
    assert work(run, Maker(), [1]).made == 4
    assert not run.finished(0) and run.finished(1)
    assert work(run, Maker(), [0]).made == 3
    assert content(run) == content(whole)


def test_more_shards_than_images(tmp_path: Path) -> None:
    run = new_run(tmp_path, 2, 5)
    assert work(run, Maker()).made == 2
    assert sum(json.loads((run.shard_folder(s) / "done.json").read_text())["images"] for s in range(5)) == 2


def test_done_says_what_is_there(tmp_path: Path) -> None:
    run = new_run(tmp_path, 7, 1, 3)
    work(run, Maker(bad={"i5"}))
    files = [p for p in run.shard_folder(0).iterdir() if p.name.startswith("part-")]
    assert run.read_done(0) == {
        "run": run.digest,
        "images": 7,
        "parts": 3,
        "bytes": sum(p.stat().st_size for p in files),
        "failed": [["i5", "torn"]],
        "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.suffix == ".parquet"},
    }


def test_retry_failed_makes_only_the_failures(tmp_path: Path) -> None:
    good, run = new_run(tmp_path / "good"), new_run(tmp_path / "run")
    work(good, Maker())
    assert [f for f, _ in work(run, Maker(bad={"i1", "i5"})).failed] == ["i1", "i5"]
    # not asked to, a rerun keeps the failures
    still = Maker()
    assert len(work(run, still).failed) == 2 and still.calls == []
    half = Maker(bad={"i5"})
    assert work(run, half, retry_failed=True).failed == [("i5", "torn")]
    assert [images for _, _, images in half.calls] == [("i1",), ("i5",)]
    last = Maker()
    outcome = work(run, last, [1], retry_failed=True)
    assert [images for _, _, images in last.calls] == [("i5",)] and outcome.failed == []
    assert (outcome.made, outcome.cached) == (1, 3)
    assert content(run) == content(good)
    nothing = Maker()
    work(run, nothing, retry_failed=True)
    assert nothing.calls == [] and content(run) == content(good)


def test_retry_stopped_between_keeps_the_failure_known(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run, Maker(bad={"i0", "i2"}))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(run, Maker(stop=stop), retry_failed=True)
    outcome = work(run, Maker(bad={"i0", "i2"}))
    assert [i for i, _ in outcome.failed] == ["i0", "i2"]


def test_two_tasks_on_one_shard(tmp_path: Path) -> None:
    run, maker = new_run(tmp_path), Maker()
    with locked(run.shard_folder(1) / "lock"):
        with pytest.raises(LockedError, match="00001"):
            work(run, maker)
        assert run.finished(0) and {s for s, _, _ in maker.calls} == {0}
    assert work(run, Maker()).made == 4


def test_a_shard_that_another_task_finished_meanwhile_is_left_alone(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    before: dict[str, int] = {}

    def meanwhile() -> None:
        if not before:  # while shard 0 is made here, another task does shard 1
            work(run, Maker(bad={"i6"}), [1])
            before["done"] = (run.shard_folder(1) / "done.json").stat().st_mtime_ns

    maker = Maker(stop=meanwhile)
    outcome = work(run, maker)
    assert {s for s, _, _ in maker.calls} == {0}
    assert (outcome.made, outcome.cached, outcome.failed) == (3, 4, [("i6", "torn")])
    assert (run.shard_folder(1) / "done.json").stat().st_mtime_ns == before["done"]
    assert not (run.shard_folder(1) / "lock").exists()


def test_damaged_marks_are_named(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run, Maker())
    path = run.shard_folder(0) / "done.json"
    for text in ("{", "{}", "[]", '{"failed": [1]}'):
        path.write_text(text)
        with pytest.raises(CorruptError, match=r"done.json"):
            work(run, Maker())
    path.unlink()
    index = index_path(run.shard_folder(0), 1)
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(CorruptError, match=r"part-0001.parquet"):
        work(run, Maker())
    index.unlink()
    maker = Maker()
    work(run, maker)
    assert [(s, p) for s, p, _ in maker.calls] == [(0, 1)]  # the hint that the message gives costs one part


def test_outcome_speaks_and_failures_give_the_partial_code(capsys: pytest.CaptureFixture[str]) -> None:
    Outcome(made=3, cached=2, seconds=4.2).report("classify")
    assert capsys.readouterr().err == "classify: 3 images in 4 s, 2 were done before\n"
    Outcome(cached=5).report("classify")
    assert "nothing to do, 5 images were done before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "cached", "failed", "words"),
    [
        (0, 2, 1, "1 of 2 images failed, the other one is done"),
        (0, 2, 2, "all 2 images failed"),
        (1, 0, 1, "the only image failed"),
        (0, 1, 1, "the only image failed"),
        (3, 2, 1, "1 of 5 images failed, the other 4 are done"),
        (3, 2, 4, "4 of 5 images failed, the other one is done"),
        (3, 2, 5, "all 5 images failed"),
        (20, 0, 12, "12 of 20 images failed, the other 8 are done"),
        (21, 0, 21, "all 21 images failed"),
        (0, 21, 11, "11 of 21 images failed, the other 10 are done"),
    ],
)
def test_what_is_said_of_failures_is_true(capsys, made: int, cached: int, failed: int, words: str) -> None:
    outcome = Outcome(made=made, cached=cached, failed=[(f"i{n}", "torn") for n in range(failed)])
    with pytest.raises(PartialError, match=f"^classify: {words}\\. Fix the inputs.*--retry-failed") as info:
        outcome.report("classify")
    said = capsys.readouterr().err
    assert info.value.exit_code == 7 and said.count("failed: i") == min(10, failed)
    assert ("failed: 2 more" in said) == (failed == 12) and (" more (" in said) == (failed > 10)
    before = "" if not cached else f"{cached} was tried before" if cached == 1 else f"{cached} were tried before"
    assert made == 0 or before in said


def test_timings_go_to_the_log_and_feed_the_status(tmp_path: Path) -> None:
    from vitp_pipeline.runs.status import run_status

    run = new_run(tmp_path / "proposals", 7, 3, 2)
    work(run, Maker(bad={"i6"}), [0, 2])
    logs = [read_sealed(path) for path in sorted((run.folder / "log").iterdir())]
    turns = [(log["shard"], turn["part"], turn["images"]) for log in logs for turn in log["parts"]]
    assert turns == [(0, 0, 2), (2, 0, 2), (2, 1, 1)]
    (entry,) = run_status(tmp_path)
    assert entry["stage"] == "proposals" and entry["missing"] == "1" and entry["failed"] == 1
    assert (entry["images"], entry["of"], entry["shards_done"], entry["shards"]) == (5, 7, 2, 3)
    log = run.folder / "log/shard-00000.json"
    log.write_bytes(log.read_bytes().replace(b'"images": 2', b'"images": 3'))
    with pytest.raises(CorruptError, match=r"shard-00000\.json: damaged"):
        run_status(tmp_path)
    report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert run_status(tmp_path)[0]["images_per_second"] > 0


def test_the_work_does_not_depend_on_its_timings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their file system is full, or they may not be written: what is made is kept all the same."""
    run = making.new_run(tmp_path)
    (run.folder / "log").write_bytes(b"in the way")
    making.work(run)
    assert "timing is not kept" in capsys.readouterr().err and all(run.finished(shard) for shard in range(run.shards))
    (run.folder / "log").unlink()
    with disk_of("8k", run.folder / "log") as full:
        (full / "other").write_bytes(bytes(8192))
        shutil.rmtree(run.folder / "shards")
        making.work(run)
    assert all(run.finished(shard) for shard in range(run.shards))
