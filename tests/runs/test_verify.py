from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.making import content, new_run, work
from tests.run_files import arrays_of
from vitp_pipeline.artifacts.parts import ARRAYS_DIGEST, read_index
from vitp_pipeline.errors import CorruptError, InputError
from vitp_pipeline.runs.gc import collect
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.status import run_status
from vitp_pipeline.runs.verify import print_damages, report, verify_run
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.layout import index_path
from vitp_pipeline.storage.locks import is_locked, locked
from vitp_pipeline.storage.sealed import write_sealed
from vitp_pipeline.storage.temporaries import temporary


def bad_files(root: Path) -> list[str]:
    return [d.path.relative_to(root).as_posix() for d in verify_run(root).damages]


def test_a_good_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path)
    work(run, bad=["i3"])
    checked = verify_run(tmp_path)
    assert (checked.parts, checked.damages) == (4, [])
    report(tmp_path, checked, None)
    assert "4 parts, all intact" in capsys.readouterr().err
    for shard in range(2):
        for part in range(2):
            rows = read_index(index_path(run.shard_folder(shard), part))
            assert rows.schema.metadata[ARRAYS_DIGEST].decode() == file_digest(arrays_of(run.shard_folder(shard), part))


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
            assert bad_files(tmp_path) == [f"proposals/{name}"], (name, at)
            path.write_bytes(good[name])
    for name in good:
        path = run.folder / name
        path.write_bytes(good[name][:-2])
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
        assert path.exists() == (path.name == "done.json")  # it follows from the parts
        work(run)
        assert content(run) == good and bad_files(tmp_path) == []


def test_all_that_is_bad_is_named_and_nothing_is_removed_without_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, 9, 3)
    work(run)
    good = content(run)
    index_path(run.shard_folder(0), 1).unlink()
    gone, swapped = arrays_of(run.shard_folder(2), 0), arrays_of(run.shard_folder(1), 1)
    gone.unlink()
    shutil.copy(arrays_of(run.shard_folder(1), 0), swapped)  # whole, but another's
    print_damages((checked := verify_run(tmp_path)).damages)
    with pytest.raises(CorruptError, match=r"3 of .* are damaged") as info:
        report(tmp_path, checked, None)
    assert info.value.exit_code == 6 and "--repair" in str(info.value)
    out = capsys.readouterr().out.splitlines()
    assert [line.rpartition("shards/")[2] for line in out] == [
        "00000/part-0001.parquet: is missing, though the shard is finished",
        f"00001/{swapped.name}: its checksum does not match",
        f"00002/{gone.name}: is missing",
    ]
    report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert "repaired proposals, shards 0-2: run that stage again" in capsys.readouterr().err
    work(run)
    assert content(run) == good


def test_a_shard_that_is_worked_on_is_left_alone(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run)
    index = index_path(run.shard_folder(1), 0)
    index.write_bytes(b"torn")
    with locked(run.shard_folder(1) / "lock"), pytest.raises(CorruptError, match="cannot be repaired"):
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert index.read_bytes() == b"torn"


def everything(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def digits(text: str) -> list[str]:
    """A text with each of its digits turned, one at a time."""
    places = [match.start() for match in re.finditer("[0-9]", text)]
    return [text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :] for at in places]


@pytest.mark.slow
def test_no_digit_of_run_json_has_a_part_removed(tmp_path: Path) -> None:
    """Images, shards and sizes say which parts there should be: they are not believed before they are proven."""
    run = new_run(tmp_path)
    work(run, bad=["i3"])
    good, path = everything(tmp_path), run.folder / "run.json"
    text = path.read_text()
    spoiled = [*digits(text), "", text[:-2], text.replace('"i1",', ""), text.replace('"i1"', '"i2"'), None]
    for bad in spoiled:
        path.unlink() if bad is None else path.write_text(bad)
        assert bad_files(tmp_path) == ["proposals/run.json"], bad
        with pytest.raises(CorruptError, match=r"run\.json") as info:
            run_status(tmp_path)
        assert info.value.exit_code == 6
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
        assert everything(tmp_path) == good


def test_where_nothing_proves_run_json_nothing_is_removed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run)
    for name in ("run.json", "copies.json"):
        path = run.folder / name
        good = path.read_text()
        path.write_text(re.sub(r"(shards.{2,3} )2", r"\g<1>1", good))
        assert path.read_text() != good
    before = everything(tmp_path)
    with pytest.raises(CorruptError, match="cannot be repaired"):
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("names", [["run.json"], ["copies.json"], ["run.json", "copies.json"]])
def test_a_whole_run_json_of_another_run_has_no_part_removed(tmp_path: Path, names: list[str]) -> None:
    run, other = new_run(tmp_path / "a"), new_run(tmp_path / "b", 9, 3, 1)
    for one in (run, other):
        work(one)
    good = everything(tmp_path / "a")
    for name in names:
        shutil.copy(other.folder / name, run.folder / name)
    damages = verify_run(tmp_path / "a").damages
    assert [d.path.name for d in damages] == names[:1]
    left = repair(damages)
    if len(names) == 1:
        assert not left and everything(tmp_path / "a") == good
    else:  # both say the same, and every part contradicts them
        assert left and everything(tmp_path / "a").keys() == good.keys()


def test_a_part_of_another_run_is_removed_and_made_again(tmp_path: Path) -> None:
    run, other = new_run(tmp_path / "a"), new_run(tmp_path / "b", part_size=3)
    for one in (run, other):
        work(one)
    good = content(run)
    shutil.copy(index_path(other.shard_folder(0), 0), index_path(run.shard_folder(0), 0))
    (damage,) = verify_run(tmp_path / "a").damages
    assert damage.reason == "was made for another run.json"
    assert repair([damage]) == []
    work(run)
    assert content(run) == good and verify_run(tmp_path / "a").damages == []


def test_copies_are_made_again(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert verify_run(tmp_path).damages == []
    (run.folder / "copies.json").unlink()  # killed in between: nothing is made yet
    assert verify_run(tmp_path).damages == []
    work(new_run(tmp_path))
    good = everything(tmp_path)
    for bad in (None, b"", b"{}"):
        path = run.folder / "copies.json"
        path.unlink() if bad is None else path.write_bytes(bad)
        assert bad_files(tmp_path) == ["proposals/copies.json"]
        report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
        assert everything(tmp_path) == good


def test_memories_and_results_are_removed(tmp_path: Path) -> None:
    work(new_run(tmp_path))
    names = ["digests.json", "jobs/submitted.json", "proposals/log/shard-00000.json", "proposals/result.json"]
    for name in names:
        write_sealed(tmp_path / name, {"x": 1})
        (tmp_path / name).write_text((tmp_path / name).read_text().replace("1", "2", 1))
    assert bad_files(tmp_path) == [names[0], names[1], names[3], names[2]]
    report(tmp_path, checked := verify_run(tmp_path), repair(checked.damages))
    assert not any((tmp_path / name).exists() for name in names) and bad_files(tmp_path) == []
    with pytest.raises(InputError, match="not a run directory"):
        verify_run(tmp_path / "nowhere")


# ---- gc -------------------------------------------------------------------------------------------------------------


def test_gc_removes_stale_files_and_nothing_else(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    work(run)
    good = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert collect(tmp_path) == []
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = temporary(run.folder / "run.json")
    stale = {
        run.shard_folder(0) / "part-0000.zarr.zip.elsewhere.77.tmp": 10,
        run.shard_folder(0) / "lock": 0,
        run.folder / alive.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"): 3,
        tmp_path / "digests.json.elsewhere.5.tmp": 4,
    }
    for path, size in stale.items():
        path.write_bytes(bytes(size))
    alive.write_text("being written")
    young = tmp_path / "digests.json.elsewhere.6.tmp"
    young.write_text("being written elsewhere")
    os.utime(tmp_path / "digests.json.elsewhere.5.tmp", (1, 1))
    uncommitted = arrays_of(run.shard_folder(1), 1)
    index_path(run.shard_folder(1), 1).unlink()
    (run.shard_folder(1) / "done.json").unlink()
    expected = {**stale, uncommitted: uncommitted.stat().st_size}
    assert dict(collect(tmp_path, remove=False)) == expected and all(p.exists() for p in expected)
    with locked(run.shard_folder(1) / "lock"):  # somebody is about to commit it
        assert dict(collect(tmp_path)) == stale
    assert dict(collect(tmp_path)) == {uncommitted: expected[uncommitted]}
    assert collect(tmp_path) == [] and alive.exists() and young.exists()
    for path in (alive, young):
        path.unlink()
    work(run)
    assert all(path.read_bytes() == there for path, there in good.items() if path.parent.name != "log")


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
