"""What a stopped task leaves: used when whole and of this run, and then without a trace in the result."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitp_pipeline import stopping
from vitp_pipeline.artifacts.parts import ArrayReader, ArrayWriter
from vitp_pipeline.artifacts.run import StageRun, create_or_check
from vitp_pipeline.artifacts.spool import Spool
from vitp_pipeline.errors import StoppedError
from vitp_pipeline.stages.driver import run_parts
from vitp_pipeline.stopping import stop_wanted

SIZE = pa.list_(pa.int32(), 2)
SCHEMA = pa.schema(
    [("image_id", pa.string()), ("status", pa.string()), ("error", pa.string()), ("size", SIZE)],
    metadata={"vitp": "{}"},
)


class Maker:
    """Two arrays an image, none for those that fail, and one or two rows; told to stop after `until` images."""

    def __init__(self, stops: Sequence[int]) -> None:
        self.stops, self.made = set(stops), []

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, advance) -> pa.Table:
        writer, rows = ArrayWriter(arrays, {"part": part}), []
        for image in images:
            bad = image in ("i3", "i6")
            for view in range(1 if bad else 1 + int(image[1:]) % 2):
                if not bad:
                    writer.add(f"masks/{image}.{view}", np.full((2, 3), int(image[1:])), ["y", "x"])
                    writer.add(f"logits/{image}.{view}", np.arange(4.0), ["q"])
                row = {"image_id": image, "status": "failed" if bad else "ok", "error": "torn" if bad else None}
                rows.append(row | {"size": None if bad else [view, int(image[1:])]})
            self.made.append(image)
            advance(1)
            if len(self.made) in self.stops:
                stopping._wanted = "SIGTERM"
            if stop_wanted():
                break
        writer.close()
        return pa.Table.from_pylist(rows, SCHEMA)


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_wanted", "")


def new_run(folder: Path) -> StageRun:
    return create_or_check(folder, {"stage": "t"}, tuple(f"i{n}" for n in range(11)), 2, 4)


def content(run: StageRun) -> dict[str, bytes]:
    files = [p for p in run.folder.rglob("*") if p.is_file() and p.parent.name != "log" and p.name != "run.json"]
    return {p.relative_to(run.folder).as_posix(): p.read_bytes() for p in files}


def work(run: StageRun, maker: Maker) -> bool:
    """Whether it came to its end."""
    stopping._wanted = ""
    try:
        run_parts(run, range(run.shards), lambda: maker, "test")
    except StoppedError as error:
        assert error.exit_code == 75
        return False
    return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    run = new_run(tmp_path_factory.mktemp("whole"))
    run_parts(run, range(run.shards), lambda: Maker([]), "test")
    return content(run)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.sets(st.integers(1, 11)))
def test_stopped_after_any_images_and_taken_up_again(tmp_path_factory, whole, stops: set[int]) -> None:
    run, maker = new_run(tmp_path_factory.mktemp("run")), Maker(stops)
    starts = 1
    while not work(run, maker):
        starts += 1
    assert maker.made == [f"i{n}" for n in range(11)]  # each once, whatever the stops
    assert starts <= 1 + len(stops)
    assert content(run) == whole


def stopped_run(folder: Path) -> tuple[StageRun, Spool]:
    run = new_run(folder)
    assert not work(run, Maker([3]))
    spool = Spool(run.shard_folder(0), 0, run.fingerprint, run.parts(0)[0])
    assert spool.images == ("i0", "i1", "i2") and not list(run.folder.rglob("part-*"))
    return run, spool


@pytest.mark.parametrize("which", ["rows_path", "arrays_path"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_a_damaged_spool_is_not_used(tmp_path: Path, whole, which: str, how: str, capsys) -> None:
    run, spool = stopped_run(tmp_path)
    path: Path = getattr(spool, which)
    good = path.read_bytes()
    if how == "flip":
        spoiled = bytearray(good)
        spoiled[random.Random(0).randrange(len(good))] ^= 0x10
        path.write_bytes(spoiled)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(good[: len(good) // 2] if how == "cut" else b"")
    maker = Maker([])
    assert work(run, maker) and content(run) == whole and maker.made[0] == "i0"
    said = capsys.readouterr().err
    assert ("not used" in said) == (which == "arrays_path" or how != "gone")


def test_a_spool_of_other_settings_or_images_is_not_used(tmp_path: Path, whole) -> None:
    run, spool = stopped_run(tmp_path)
    folder, images = run.shard_folder(0), run.parts(0)[0]
    keep = spool.rows_path.read_bytes(), spool.arrays_path.read_bytes()
    assert Spool(folder, 0, "another", images).rows is None and not spool.rows_path.exists()
    for path, content_ in zip((spool.rows_path, spool.arrays_path), keep, strict=True):
        path.write_bytes(content_)
    assert Spool(folder, 0, run.fingerprint, images).images == ("i0", "i1", "i2")
    assert Spool(folder, 0, run.fingerprint, images[::-1]).rows is None


def test_retrying_failed_images_drops_a_spool_that_holds_one(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert not work(run, Maker([7]))  # i3 failed in a part that is committed, i6 in one that is not
    stopping._wanted = ""
    maker = Maker([])
    run_parts(run, range(run.shards), lambda: maker, "test", retry_failed=True)
    assert maker.made == [f"i{n}" for n in range(11) if n != 4]


def test_arrays_of_a_spool_can_be_read(tmp_path: Path) -> None:
    _, spool = stopped_run(tmp_path)
    with ArrayReader(spool.arrays_path) as arrays:
        assert arrays.read("masks/i2.0")[0, 0] == 2
    with zipfile.ZipFile(spool.arrays_path) as file:
        assert len(set(file.namelist())) == len(file.namelist())
