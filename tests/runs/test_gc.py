"""`vitp gc` among files that nobody here has called so: synchronized folders, editors, other people."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cluster.making import new_run, work
from vitp_pipeline.cli.main import main
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.runs.gc import collect
from vitp_pipeline.storage.layout import index_path

UNFINISHED = [
    "part-000 (conflicted copy).zarr.tmp",
    "part-0000 (Anna's conflicted copy 2026-11-30).zarr.zip.tmp",
    "part-0000.parquet (1).tmp",
    "_partial-0000 (conflicted copy).parquet.tmp",
    "_partial-x.tmp",
    "-rf.tmp",
    ".tmp",
    "a\nb\x1b[2J.tmp",
    os.fsdecode(b"\xff\xfe.tmp"),
    "part-0000.zarr.zip.deadbeef-99999999999999999999-0.tmp",
    "part-0000.zarr.zip.00000000-٣-٣.tmp",
    "x" * 251 + ".tmp",
]
OTHERS = [
    "_partial-0000 (conflicted copy).parquet",
    "_partial-0000 (conflicted copy).zarr.zip",
    "_partial-.parquet",
    "_partial-x.zarr.zip",
    "_partial-٠٠٠٠.parquet",
    "_partial-1e4.parquet",
    "_partial-0x10.zarr.zip",
    "_partial-0000.parquet~",
    "part-0000-0123456789AB.zarr.zip",
    "part-0000-0123456789ab (1).zarr.zip",
    "part-0000 (conflicted copy).parquet",
    "part-٠٠٠٠-0123456789ab.zarr.zip",
    "done (conflicted copy).json",
    "lock (conflicted copy)",
    ".nfs0000000000000001",
    "tmp",
]


@pytest.mark.parametrize("name", [*UNFINISHED, *OTHERS], ids=ascii)
def test_odd_names(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    work(run)
    good = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    odd = run.shard_folder(0) / name
    odd.write_bytes(b"x")
    monkeypatch.setattr(sys, "argv", ["vitp", "gc", str(tmp_path)])
    main()
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "\x1b" not in said.out + said.err
    assert odd.exists() == (name in OTHERS)
    assert {path: path.read_bytes() for path in good} == good
    work(run)  # nor do they disturb a task


@pytest.mark.parametrize("part", [0, 1])
def test_arrays_whose_index_was_lost_are_no_stale_files(tmp_path: Path, part: int) -> None:
    """done.json says that the part was committed: so `verify` names the index, and nothing is removed."""
    run = new_run(tmp_path)
    work(run)
    index_path(run.shard_folder(1), part).unlink()
    stray = run.shard_folder(0) / "part-0007-0123456789ab.zarr.zip"  # of no part of the shard
    stray.write_bytes(b"x")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for remove in (False, True):
        with pytest.raises(CorruptError, match=rf"part-000{part}\.parquet: is missing, though the shard is finished"):
            collect(tmp_path, remove)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before - {stray}
