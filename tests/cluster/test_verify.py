from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.making import content, new_run, work
from vitp_pipeline.artifacts.locks import is_locked, locked
from vitp_pipeline.artifacts.parts import arrays_path, index_path, read_index, write_index
from vitp_pipeline.artifacts.temporaries import temporary
from vitp_pipeline.cluster.gc import collect
from vitp_pipeline.cluster.verify import print_damages, repair, report, verify_run
from vitp_pipeline.errors import CorruptError, InputError
from vitp_pipeline.fingerprint import file_digest
from vitp_pipeline.stages.driver import ARRAYS_DIGEST


def bad_files(root: Path) -> list[str]:
    return [d.path.relative_to(root).as_posix() for d in verify_run(root).damages]


def test_a_good_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path)
    work(run, bad=["i3"])
    checked = verify_run(tmp_path)
    assert (checked.parts, checked.damages) == (4, [])
    report(tmp_path, checked, None)
    assert "4 parts, all as they were written" in capsys.readouterr().err
    for shard in range(2):
        for part in range(2):
            rows = read_index(index_path(run.shard_folder(shard), part))
            assert rows.schema.metadata[ARRAYS_DIGEST].decode() == file_digest(
                arrays_path(run.shard_folder(shard), part)
            )


def test_a_part_of_a_run_under_way_is_checked_too(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run, [0])
    folder = run.shard_folder(1)
    shutil.copytree(run.shard_folder(0), folder)  # the wrong images
    (folder / "done.json").unlink()
    index_path(folder, 1).unlink()
    assert bad_files(tmp_path) == ["proposals/shards/00001/part-0000.parquet"]


def test_every_flipped_byte_is_found_and_repaired(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run)
    good, rng = content(run), np.random.default_rng(0)
    for name in good:
        for at in rng.integers(0, len(good[name]), 12):
            path = run.folder / name
            flipped = bytearray(good[name])
            flipped[at] ^= int(rng.integers(1, 256))
            path.write_bytes(flipped)
            harmless = name.endswith("done.json") and json.loads(good[name]) == _json(
                bytes(flipped)
            )  # a tab for a space
            assert bad_files(tmp_path) == ([] if harmless else [f"proposals/{name}"]), (name, at)
            path.write_bytes(good[name])
    for name in good:
        path = run.folder / name
        path.write_bytes(good[name][:-2])
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
        assert not path.exists()
        work(run)
        assert content(run) == good and bad_files(tmp_path) == []


def _json(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_all_that_is_bad_is_named_and_nothing_is_removed_without_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, 9, 3)
    work(run)
    good = content(run)
    index_path(run.shard_folder(0), 1).unlink()
    arrays_path(run.shard_folder(2), 0).unlink()
    shutil.copy(arrays_path(run.shard_folder(1), 0), arrays_path(run.shard_folder(1), 1))  # whole, but another's
    print_damages((checked := verify_run(tmp_path)).damages)
    with pytest.raises(CorruptError, match=r"3 of .* are damaged") as info:
        report(tmp_path, checked, None)
    assert info.value.exit_code == 6 and "--repair" in str(info.value)
    out = capsys.readouterr().out.splitlines()
    assert [line.rpartition("shards/")[2] for line in out] == [
        "00000/part-0001.parquet: is missing, though the shard is finished",
        "00001/part-0001.zarr.zip: its checksum does not fit",
        "00002/part-0000.zarr.zip: is missing",
    ]
    report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert "of proposals, shards 0-2: run that stage again" in capsys.readouterr().err
    work(run)
    assert content(run) == good


def without_digest(run, shard: int, part: int) -> None:
    """Makes a part as it was written before its index knew of its arrays."""
    index = index_path(run.shard_folder(shard), part)
    rows = read_index(index)
    write_index(index, rows.replace_schema_metadata(None))


def test_parts_of_before_the_digest(tmp_path: Path) -> None:
    run = new_run(tmp_path, 4, 1)
    work(run)
    for part in range(2):
        without_digest(run, 0, part)
    done = run.shard_folder(0) / "done.json"
    done.unlink()
    work(run)
    assert bad_files(tmp_path) == []
    arrays = arrays_path(run.shard_folder(0), 1)
    good = arrays.read_bytes()
    arrays.write_bytes(
        good.replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfe", 1) if b"\x28\xb5\x2f\xfd" in good else b""
    )
    assert bad_files(tmp_path) == ["proposals/shards/00000/part-0001.zarr.zip"]
    arrays.write_bytes(arrays_path(run.shard_folder(0), 0).read_bytes())  # other images' arrays
    (damage,) = verify_run(tmp_path).damages
    assert damage.reason == "has no masks of image i2"


def test_a_shard_that_is_worked_on_is_left_alone(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run)
    index = index_path(run.shard_folder(1), 0)
    index.write_bytes(b"torn")
    with locked(run.shard_folder(1) / "lock"), pytest.raises(CorruptError, match="cannot be mended"):
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert index.read_bytes() == b"torn"


def test_run_json_and_result(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run)
    evaluation = tmp_path / "evaluation/abc"
    evaluation.mkdir(parents=True)
    path = run.folder / "run.json"
    said = json.loads(path.read_text())
    (evaluation / "run.json").write_text(json.dumps({**said, "images": []}))
    (evaluation / "result.json").write_text('{"semantic": ')
    path.write_text(path.read_text().replace('"proposals"', '"propocals"'))
    assert bad_files(tmp_path) == ["proposals/run.json", "evaluation/abc/result.json"]
    with pytest.raises(CorruptError, match=r"proposals/run.json: its fingerprint"):
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert not (evaluation / "result.json").exists() and path.exists()
    with pytest.raises(InputError, match="no run lies there"):
        verify_run(tmp_path / "nowhere")


def test_a_classifier(tmp_path: Path) -> None:
    from vitp_pipeline.artifacts.digests import Digests
    from vitp_pipeline.artifacts.run import create_or_check

    folder = tmp_path / "classifier/default"
    create_or_check(folder, {"stage": "classifier"})
    model = folder / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    good = len(header).to_bytes(8, "little") + header + bytes(8)
    assert bad_files(tmp_path) == []  # it is being trained
    (folder / "done.json").write_text("{}")
    assert bad_files(tmp_path) == ["classifier/default/model.safetensors"]
    for broken in (b"", good[:-1], good + b"x", b"\xff" * 30):
        model.write_bytes(broken)
        assert bad_files(tmp_path) == ["classifier/default/model.safetensors"]
    model.write_bytes(good)
    assert bad_files(tmp_path) == []
    Digests(tmp_path).of(model)
    status = model.stat()
    model.write_bytes(good[:-1] + b"\1")  # a bit that turned on the disk: size and time are as they were
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert bad_files(tmp_path) == ["classifier/default/model.safetensors"]


# ---- gc -------------------------------------------------------------------------------------------------------------


def test_gc_removes_leavings_and_nothing_else(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run)
    good = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert collect(tmp_path) == []
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = temporary(run.folder / "run.json")
    leavings = {
        run.shard_folder(0) / "part-0000.zarr.zip.elsewhere.77.tmp": 10,
        run.shard_folder(0) / "lock": 0,
        run.folder / alive.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"): 3,
        tmp_path / "digests.json.elsewhere.5.tmp": 4,
    }
    for path, size in leavings.items():
        path.write_bytes(bytes(size))
    alive.write_text("being written")
    young = tmp_path / "digests.json.elsewhere.6.tmp"
    young.write_text("being written elsewhere")
    os.utime(tmp_path / "digests.json.elsewhere.5.tmp", (1, 1))
    uncommitted = arrays_path(run.shard_folder(1), 1)
    index_path(run.shard_folder(1), 1).unlink()
    (run.shard_folder(1) / "done.json").unlink()
    expected = {**leavings, uncommitted: uncommitted.stat().st_size}
    assert dict(collect(tmp_path, remove=False)) == expected and all(p.exists() for p in expected)
    with locked(run.shard_folder(1) / "lock"):  # somebody is about to commit it
        assert dict(collect(tmp_path)) == leavings
    assert dict(collect(tmp_path)) == {uncommitted: expected[uncommitted]}
    assert collect(tmp_path) == [] and alive.exists() and young.exists()
    for path in (alive, young):
        path.unlink()
    work(run)
    assert all(path.read_bytes() == there for path, there in good.items() if path.suffix != ".jsonl")


def test_looking_at_a_lock_keeps_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_locked(lock) and not lock.exists()
    with locked(lock):
        assert is_locked(lock)
    assert not is_locked(lock)
    # a task that starts at the very moment of a look waits for it to pass
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True)"
    looker = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(0.03)", lock], stdout=subprocess.PIPE)
    looker.stdout.readline()
    with locked(lock):
        pass
    looker.wait()
