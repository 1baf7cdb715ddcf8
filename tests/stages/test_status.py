from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp_pipeline.artifacts.run import create_or_check
from vitp_pipeline.errors import InputError
from vitp_pipeline.stages.status import array_expression, print_status, run_status


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
    with pytest.raises(InputError, match="no run lies there"):
        run_status(tmp_path / "nowhere")


def test_training_under_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "classifier/default"
    create_or_check(folder, {"stage": "classifier"}, ("a", "b"))
    assert run_status(tmp_path)[0]["epoch"] is None
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.5}\n{"epoch": 2, "loss": 1.5}\n{"epo')
    (entry,) = run_status(tmp_path)
    assert (entry["stage"], entry["epoch"], entry["loss"], entry["shards_done"]) == ("classifier/default", 2, 1.5, 0)
    print_status([entry], as_json=True)
    assert json.loads(capsys.readouterr().out) == [entry]
    print_status([entry], as_json=False)
    assert "epoch 2" in capsys.readouterr().out
    (folder / "done.json").write_text("{}")
    print_status(run_status(tmp_path), as_json=False)
    assert "trained" in capsys.readouterr().out
