from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vitp_pipeline.errors import CorruptError
from vitp_pipeline.storage.fs_ops import fill, make_folder, new_file, remove
from vitp_pipeline.storage.layout import open_own, open_plain, part_of_arrays, place, refuse_links, run_of
from vitp_pipeline.storage.locks import locked
from vitp_pipeline.storage.sealed import read_sealed, write_sealed

CLASSES, EXPORT = "class_scores/0123456789ab", "exports/coco-panoptic-0123456789ab"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/x/run/proposals/run.json", "proposals/run.json"),
        ("/x/run/proposals/shards/00012/part-0000.parquet", "proposals/shards/00012/part-0000.parquet"),
        ("/x/run/proposals/shards/00000/done.json.host.1.tmp", "proposals/shards/00000/done.json.host.1.tmp"),
        ("/x/run/proposals/log/shard-00000.json", "proposals/log/shard-00000.json"),
        ("/x/class_scores/run/proposals/run.json", "proposals/run.json"),
        (f"/x/classifier/run/{CLASSES}/shards/00000/lock", f"{CLASSES}/shards/00000/lock"),
        ("/x/run/classifier/default/model.safetensors", "classifier/default/model.safetensors"),
        ("/x/run/classifier/proposals/done.json", "classifier/proposals/done.json"),
        (f"/x/run/{EXPORT}/results/panoptic/a.png", f"{EXPORT}/results/panoptic/a.png"),
        (f"/x/run/{EXPORT}/results", f"{EXPORT}/results"),
        ("/x/run/jobs/log/a.log", "jobs/log/a.log"),
        ("/x/proposals/run2/digests.json", "digests.json"),
        ("/x/proposals/digests.json", "digests.json"),
        ("/x/proposals/proposals/run.json", "proposals/run.json"),
        ("/x/jobs/proposals/run.json", "proposals/run.json"),
        ("/x/jobs/digests.json", "digests.json"),
        ("/x/classifier/run2/report.html", "report.html"),
        ("/x/classifier/mine/weights.pth", "weights.pth"),
        ("/x/class_scores/0123/run.json", "run.json"),
        ("/x/y.json", "y.json"),
        ("/x/run/proposals", "proposals"),
    ],
)
def test_places(path: str, expected: str) -> None:
    assert place(Path(path)) == expected
    assert run_of(Path(path)) / expected == Path(path)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("part-0003-0123456789ab.zarr.zip", 3),
        ("part-12345-0123456789ab.zarr.zip", 12345),
        ("part-0003.parquet", None),
        ("part-0003.zarr.zip", None),
        ("part-0003-0123456789AB.zarr.zip", None),
        ("part-0003-0123456789ab (conflicted copy).zarr.zip", None),
        ("_partial-0003.zarr.zip", None),
    ],
)
def test_names_of_arrays(name: str, part: int | None) -> None:
    assert part_of_arrays(name) == part


# ---- what lies in a run that vitp did not put there --------------------------------------------------------------

ACTIONS = {
    "lock": lambda path: locked(path).__enter__(),
    "write": lambda path: write_sealed(path, {"x": 1}),
    "fill": lambda path: fill(path, b"x"),
    "own": lambda path: open_own(path, os.O_RDWR | os.O_CREAT),
    "remove": remove,
    "folder": lambda path: make_folder(path.with_name("other")),
}


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("linked", ["", "proposals", "proposals/shards", "proposals/shards/00000"])
def test_nothing_goes_through_a_linked_folder(tmp_path: Path, action: str, linked: str) -> None:
    """The run directory itself may be a link."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    inner = victim / Path("proposals/shards/00000").relative_to(linked or ".")
    inner.mkdir(parents=True)
    (inner / "lock").write_bytes(b"mine")
    before = everything(victim)
    (run / linked).parent.mkdir(parents=True, exist_ok=True)
    (run / linked).symlink_to(victim)
    path = run / "proposals/shards/00000/lock"
    if linked:
        with pytest.raises(CorruptError, match=r"is a link, and vitp follows no links inside a run") as info:
            ACTIONS[action](path)
        assert str(run / linked) in str(info.value) and info.value.exit_code == 6
        assert everything(victim) == before
    else:
        assert refuse_links(path)


FILES = ("proposals/shards/00000/lock", "proposals/log/shard-00000.json", "proposals/run.json", "digests.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "dangling", "hard", "pipe", "socket"])
def test_a_file_that_is_none_is_neither_followed_nor_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "run" / name
    victim.write_bytes(b"precious")
    path.parent.mkdir(parents=True)
    if kind in ("link", "dangling"):
        path.symlink_to(victim if kind == "link" else tmp_path / "not there")
    elif kind == "hard":
        path.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(path.parent)  # a socket's name must be short
            server.bind(path.name)
    reads = () if kind == "hard" else (open_plain, read_sealed)  # it is a file, after all
    for act in (*reads, lambda p: open_own(p, os.O_RDWR | os.O_CREAT)):
        with pytest.raises(CorruptError, match=str(path)):
            act(path)
    with pytest.raises(CorruptError), locked(path):
        pass
    write_sealed(path, {"x": 1})  # what replaces a file replaces a link, too, and not what it leads to
    assert read_sealed(path) == {"x": 1} and not path.is_symlink()
    assert victim.read_bytes() == b"precious" and not (tmp_path / "not there").exists()


def test_a_new_file_is_new(tmp_path: Path) -> None:
    """Whatever has the name of a temporary file: a link that was planted, or what a killed task was about to commit."""
    victim, path = tmp_path / "victim", tmp_path / "a.tmp"
    for plant in (path.symlink_to, path.hardlink_to):
        victim.write_bytes(b"precious")
        plant(victim)
        with new_file(path) as file:
            file.write(b"new")
        assert victim.read_bytes() == b"precious" and path.read_bytes() == b"new"
        path.unlink()
