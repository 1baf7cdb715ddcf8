from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.making import new_run, work
from tests.local_runs import create_or_check, open_run
from vitp_pipeline.errors import CorruptError, InputError
from vitp_pipeline.runs.status import array_expression, print_status, run_status, watch_status
from vitp_pipeline.storage.locks import locked
from vitp_pipeline.storage.sealed import write_sealed


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([], ""),
        ([4], "4"),
        ([17, 3, 18, 19], "3,17-19"),
        ([0, 1], "0-1"),
        ([0, 2, 4], "0,2,4"),
        ([9, 8, 7, 0], "0,7-9"),
    ],
)
def test_array_expression(indices: list[int], text: str) -> None:
    assert array_expression(indices) == text


@given(st.sets(st.integers(0, 50)))
def test_array_expression_says_exactly_the_indices(indices: set[int]) -> None:
    said: list[int] = []
    for piece in filter(None, array_expression(list(indices)).split(",")):
        first, _, last = piece.partition("-")
        said += range(int(first), int(last or first) + 1)
    assert said == sorted(indices)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        run_status(tmp_path / "nowhere")


def test_training_under_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "classifier/default"
    create_or_check(folder, {"stage": "classifier"}, ("a", "b"))
    assert run_status(tmp_path)[0]["epoch"] is None
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.5}\n{"epoch": 2, "loss": 1.5}\n')
    (entry,) = run_status(tmp_path)
    assert (entry["stage"], entry["epoch"], entry["loss"], entry["shards_done"]) == ("classifier/default", 2, 1.5, 0)
    print_status([entry], as_json=True)
    assert json.loads(capsys.readouterr().out) == [entry]
    print_status([entry], as_json=False)
    assert "epoch 2" in capsys.readouterr().out
    digest = hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
    end = {"images": 2, "bytes": 7, "left_out": {}, "files": {"metrics.jsonl": digest}}
    write_sealed(folder / "model.json", {"sha256": "0" * 64})
    write_sealed(folder / "done.json", {"run": open_run(folder).digest, **end})
    print_status(run_status(tmp_path), as_json=False)
    assert "trained" in capsys.readouterr().out
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.5}\n{"epoch": 2, "loss": 0.5}\n')
    with pytest.raises(CorruptError, match=r"metrics\.jsonl: damaged"):
        run_status(tmp_path)


def test_training_of_a_length_in_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "classifier/default"
    create_or_check(folder, {"stage": "classifier", "settings": {"epochs": 0, "steps": 400}}, ("a", "b"))
    (folder / "metrics.jsonl").write_text('{"step": 120, "epoch": 3, "loss": 2.5}\n')
    print_status(run_status(tmp_path), as_json=False)
    assert "step 120/400" in capsys.readouterr().out


def test_done_running_stopped_and_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path, 12, 6, 1)
    work(run, [0, 4], bad=["i8"])
    work(run, [1, 2])
    for shard in (1, 2):  # as tasks leave it that were killed, or are at work
        for name in ("done.json", "part-0001.parquet"):
            (run.shard_folder(shard) / name).unlink()
        (run.shard_folder(shard) / "lock").touch()
    with locked(run.shard_folder(2) / "lock"):
        (entry,) = run_status(tmp_path)
    assert (entry["shards_done"], entry["running"], entry["stopped"], entry["missing"]) == (2, [2], [1], "1,3,5")
    assert (entry["images"], entry["of"], entry["failed"], entry["failed_images"]) == (6, 12, 1, [["i8", None]])
    files = [p for s in (0, 1, 2, 4) for p in run.shard_folder(s).glob("part-*")]
    committed = [p for p in files if "zarr" not in p.name or p.with_name(p.name[:9] + ".parquet").exists()]
    assert entry["bytes"] == sum(p.stat().st_size for p in committed) and len(committed) < len(files)
    assert entry["seconds_left"] == pytest.approx(6 / entry["images_per_second"])
    print_status([entry], as_json=False)
    out = capsys.readouterr().out
    assert "--array=1,3,5" in out and "killed on shard 1" in out and "i8 failed" in out
    # nobody is at work: nobody can say when it ends
    assert run_status(tmp_path)[0]["seconds_left"] is None and run_status(tmp_path)[0]["missing"] == "1-3,5"
    work(run)
    (entry,) = run_status(tmp_path)
    assert (entry["images"], entry["missing"], entry["running"], entry["stopped"]) == (12, "", [], [])


def test_watching_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path)
    looks = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        work(run, [len(looks) - 1])

    capsys.readouterr()
    watch_status(tmp_path, as_json=True, wait=wait)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[0]["missing"] for line in lines] == ["0-1", "1", ""] and len(looks) == 2
