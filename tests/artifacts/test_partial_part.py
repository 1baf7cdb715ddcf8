"""What a stopped task leaves: used when whole and of this run, and then without a trace in the result."""

from __future__ import annotations

import contextlib
import random
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.local_runs import create_or_check
from vitp_pipeline.artifacts.partial_part import PartialPart
from vitp_pipeline.artifacts.parts import ArrayReader, ArrayWriter
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import PartialError, StoppedError
from vitp_pipeline.execution import runner
from vitp_pipeline.execution.runner import WorkBudget, run_parts
from vitp_pipeline.runs import status
from vitp_pipeline.runtime import signals

SIZE = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [("image_id", pa.string()), ("status", pa.string()), ("error", pa.string()), ("size", SIZE)],
    metadata={"vitp": "{}"},
)


class Maker:
    """Two arrays for each of an image's one or two views, and a row; those that fail have one row, and half of their
    arrays. Told to stop after some numbers of images, and to hand over after others.
    """

    def __init__(
        self, stops: Sequence[int] = (), pauses: Sequence[int] = (), bad: Sequence[str] = ("i3", "i6")
    ) -> None:
        self.stops, self.pauses, self.bad, self.made = set(stops), set(pauses), bad, []

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        writer, rows = ArrayWriter(arrays, {"part": part}), []
        for image in images:
            bad, number = image in self.bad, int(image[1:])
            for key in (image, f"{image}@1")[: 1 if bad else 1 + number % 2]:
                writer.add(f"masks/{key}", np.full((2, 3), number + 100 * bad), ["y", "x"])
                if not bad:
                    writer.add(f"logits/{key}", np.arange(4.0), ["q"])
                row = {"image_id": image, "status": "failed" if bad else "ok", "error": "torn" if bad else None}
                rows.append(row | {"size": None if bad else [len(key), number]})
            self.made.append(image)
            budget.advance(1)
            if len(self.made) in self.stops:
                signals._wanted = "SIGTERM"
            if budget.over() or len(self.made) in self.pauses:
                break
        writer.close()
        return pa.Table.from_pylist(rows, SCHEMA)


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_wanted", "")


def new_run(folder: Path) -> StageRun:
    return create_or_check(folder / "proposals", {"stage": "t"}, tuple(f"i{n}" for n in range(11)), 2, 4)


def content(run: StageRun) -> dict[str, bytes]:
    apart = ("run.json", "copies.json")
    files = [p for p in run.folder.rglob("*") if p.is_file() and p.parent.name != "log" and p.name not in apart]
    return {p.relative_to(run.folder).as_posix(): p.read_bytes() for p in files}


def work(run: StageRun, maker: Maker) -> bool:
    """Whether it came to its end."""
    signals._wanted = ""
    try:
        run_parts(run, range(run.shards), lambda: maker, "test")
    except StoppedError as error:
        assert error.exit_code == 75
        return False
    return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    run = new_run(tmp_path_factory.mktemp("whole"))
    run_parts(run, range(run.shards), Maker, "test")
    return content(run)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.sets(st.integers(1, 11)), pauses=st.sets(st.integers(1, 11)))
def test_stopped_after_any_images_and_taken_up_again(
    tmp_path_factory, whole, stops: set[int], pauses: set[int]
) -> None:
    run, maker = new_run(tmp_path_factory.mktemp("run")), Maker(stops, pauses)
    starts = 1
    while not work(run, maker):
        starts += 1
    assert maker.made == [f"i{n}" for n in range(11)]  # each once, whatever the stops
    assert starts <= 1 + len(stops)
    assert content(run) == whole


def stopped_run(folder: Path) -> tuple[StageRun, PartialPart]:
    run = new_run(folder)
    assert not work(run, Maker([3]))
    partial = PartialPart(run, 0, 0)
    assert partial.images == ("i0", "i1", "i2") and not list(run.folder.rglob("part-*"))
    return run, partial


@pytest.mark.parametrize("which", ["rows_path", "arrays_path"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_a_damaged_partial_part_is_not_used(tmp_path: Path, whole, which: str, how: str, capsys) -> None:
    run, partial = stopped_run(tmp_path)
    path: Path = getattr(partial, which)
    good = path.read_bytes()
    if how == "flip":
        spoiled = bytearray(good)
        spoiled[random.Random(0).randrange(len(good))] ^= 0x10
        path.write_bytes(spoiled)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(good[: len(good) // 2] if how == "cut" else b"")
    maker = Maker()
    assert work(run, maker) and content(run) == whole and maker.made[0] == "i0"
    said = capsys.readouterr().err
    assert ("not used" in said) == (which == "arrays_path" or how != "gone")


def test_a_partial_part_of_other_settings_or_images_is_not_used(tmp_path: Path, whole) -> None:
    run, partial = stopped_run(tmp_path)
    keep = partial.rows_path.read_bytes(), partial.arrays_path.read_bytes()
    assert PartialPart(replace(run, identity={"stage": "other"}), 0, 0).rows is None and not partial.rows_path.exists()
    for path, content_ in zip((partial.rows_path, partial.arrays_path), keep, strict=True):
        path.write_bytes(content_)
    assert PartialPart(run, 0, 0).images == ("i0", "i1", "i2")
    assert PartialPart(replace(run, images=run.images[::-1]), 0, 0).rows is None


def test_what_is_kept_now_and_then_survives_a_kill(tmp_path: Path, whole) -> None:
    class Killed(Maker):
        def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
            if len(self.made) == 3:
                raise KeyboardInterrupt
            return super().make(shard, part, images, arrays, budget)

    run = new_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(run, Killed(pauses=[1, 3]))
    (entry,) = status.run_status(tmp_path)
    assert (entry["images"], entry["of"]) == (3, 11) and entry["images_per_second"]
    maker = Maker()
    assert work(run, maker) and maker.made == [f"i{n}" for n in range(3, 11)]
    assert content(run) == whole


def test_a_turn_is_over_when_its_time_is(tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(runner, "KEEP_SHARE", 0.0)
    kept = []
    keep = PartialPart.keep
    monkeypatch.setattr(
        PartialPart, "keep", lambda self, rows, arrays: (kept.append(len(rows)), keep(self, rows, arrays))
    )
    run = new_run(tmp_path)
    assert work(run, Maker()) and content(run) == whole
    assert len(kept) == 11 - len(run.parts(0)) - len(run.parts(1))  # after every image but a part's last
    assert (
        not WorkBudget().over()
        and not WorkBudget(until=time.monotonic() + 60).over()
        and WorkBudget(until=time.monotonic()).over()
    )


def test_keeping_large_arrays_takes_a_small_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    keep = PartialPart.keep

    def slow(self: PartialPart, rows: pa.Table, arrays: Path) -> None:
        keep(self, rows, arrays)
        clock[0] += 60.0

    monkeypatch.setattr(PartialPart, "keep", slow)
    turns: list[float] = []

    class Timed(Maker):
        def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
            turns.append(budget.until - clock[0])
            return super().make(shard, part, images, arrays, budget)

    work(new_run(tmp_path), Timed(pauses=[1, 2]))
    assert turns[:3] == [300.0, 1200.0, 1200.0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.sets(st.sampled_from([f"i{n}" for n in range(11)])), stop=st.integers(0, 11))
def test_retrying_makes_the_failed_images_alone(tmp_path_factory, bad: set[str], stop: int) -> None:
    """Whether their part was committed or its task stopped; the rest is as if they had never failed."""
    good, run = new_run(tmp_path_factory.mktemp("good")), new_run(tmp_path_factory.mktemp("run"))
    work(good, Maker(bad=()))
    first, again = Maker([stop], bad=tuple(bad)), Maker(bad=())
    with contextlib.suppress(PartialError):
        work(run, first)
    signals._wanted = ""
    run_parts(run, range(run.shards), lambda: again, "test", retry_failed=True)
    assert again.made == [i for i in (f"i{n}" for n in range(11)) if i in bad or i not in first.made]
    assert content(run) == content(good)


def test_retrying_leaves_arrays_alone_that_were_never_committed(tmp_path: Path) -> None:
    """A task was killed between what it had made and what it had kept before becoming one."""
    run, good = new_run(tmp_path / "run"), new_run(tmp_path / "good")
    work(good, Maker(bad=()))
    assert not work(run, Maker([2], bad=("i1",)))
    writer = ArrayWriter(tmp_path / "part-0000.zarr.zip", {"part": 0})
    writer.add("masks/i2", np.zeros((2, 3)), ["y", "x"])
    writer.close()
    (tmp_path / "part-0000.zarr.zip").rename(run.shard_folder(0) / "part-0000-0123456789ab.zarr.zip")
    signals._wanted = ""
    again = Maker(bad=())
    run_parts(run, range(run.shards), lambda: again, "test", retry_failed=True)
    assert "i0" not in again.made and content(run) == content(good)


def test_arrays_of_a_partial_part_can_be_read(tmp_path: Path) -> None:
    _, partial = stopped_run(tmp_path)
    with ArrayReader(partial.arrays_path) as arrays:
        assert arrays.read("masks/i2")[0, 0] == 2
    with zipfile.ZipFile(partial.arrays_path) as file:
        assert len(set(file.namelist())) == len(file.namelist())
