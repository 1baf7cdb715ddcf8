"""Pickles are data or nothing: hostile ones and mutations of real ones, read in a process of their own."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoding.hostile_pickles import hostile_pickles, hostile_torch_files, results, saved
from vitp_pipeline.decoding.torch_file import read_torch_file
from vitp_pipeline.errors import InputError
from vitp_pipeline.generators.safe_pickle import read_numpy_pickle, read_result_pickle

HOSTILE, HOSTILE_TORCH = hostile_pickles(), hostile_torch_files()
HARMLESS = {"itself", "sizes", "flags", "memo", "frame"}
"""Programs that make data after all: flags of a dtype are not read, nor is memory reserved on a file's word."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    names = {}
    for suffix, made in ((".pkl", HOSTILE), (".pth", HOSTILE_TORCH)):
        for number, (name, content) in enumerate(made.items()):
            (folder / f"{number:03d}{suffix}").write_bytes(content)
            names[f"{number:03d}{suffix}"] = name
    weights = {"model": OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.ones(2).half()), "epoch": np.int64(3)}
    arrays = {"model": {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.float64(1)}, "by": "someone"}
    (folder / "good-results.pkl").write_bytes(pickle.dumps(results(), protocol=4))
    (folder / "good-arrays.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    (folder / "good-archive.pth").write_bytes(saved(weights))
    (folder / "good-stream.pth").write_bytes(saved(weights, zipped=False))
    words = [sys.executable, "-m", "tests.decoding.hostile_pickles", str(folder), "700"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, f"code {done.returncode} (−11 is a crash): {done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    return {**found, "told": {names.get(file, file): text for file, text in found["told"].items()}, "folder": folder}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HOSTILE, *HOSTILE_TORCH])
def test_what_is_not_data_is_refused(outcome: dict[str, Any], name: str) -> None:
    text = outcome["told"][name]
    if name.removeprefix("archive: ") in HARMLESS:
        return
    assert text.startswith("InputError: ") and "\n" not in text
    assert "refused: its pickle asks for" in text or "not a readable" in text or "not of numbers" in text


def test_thousands_of_mutations_end_in_data_or_one_line(outcome: dict[str, Any]) -> None:
    """2,800 in one process, which ended with 0: neither a crash, nor an error of another kind, nor all memory."""
    assert outcome["peak"] < 300
    assert all(0 < count < 600 for count in outcome["read"].values()), outcome["read"]
    assert not list(outcome["folder"].glob("was-here")) and not Path("was-here").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_results_are_read_as_pickle_reads_them(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "a.pkl").write_bytes(content := pickle.dumps(results(), protocol=protocol))
    found, expected = read_result_pickle(tmp_path / "a.pkl"), pickle.loads(content)
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.pop("pred_instances") | ours, theirs.pop("pred_instances") | theirs
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert type(ours[key]) is type(value)
            np.testing.assert_array_equal(ours[key], value)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "stream"])
def test_tensors_are_read_as_torch_reads_them(tmp_path: Path, zipped: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.rand(6, 8, generator=generator)
    content = {
        **{str(dtype): (torch.rand(3, 5, generator=generator) * 9).to(dtype) for dtype in DTYPES},
        "view": shared[1:, ::2].T,
        "shared": shared,
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "more": {"list": [torch.ones(1), 2, "x", None, True, (1.5, b"bytes")], "set": {1, 2}, "numpy": np.float32(2)},
        "layers": torch.nn.Linear(3, 2).state_dict(),
    }
    path = tmp_path / "a.pth"
    path.write_bytes(saved(content, zipped))
    with torch.serialization.safe_globals(
        [(np.float32(0).__reduce__()[0], "numpy._core.multiarray.scalar"), np.dtype, type(np.dtype("f4")), set]
    ):
        expected = torch.load(path, weights_only=True)
    for found in (read_torch_file(path), read_torch_file(path, path.read_bytes())):
        assert found.keys() == expected.keys()
        assert found["more"]["list"][1:] == expected["more"]["list"][1:] and found["more"]["set"] == {1, 2}
        assert found["more"]["numpy"] == 2 and torch.equal(found["layers"]["weight"], expected["layers"]["weight"])
        for key in expected.keys() - {"more", "layers"}:
            assert found[key].dtype == expected[key].dtype and found[key].stride() == expected[key].stride(), key
            assert torch.equal(found[key], expected[key]), key
        found["shared"][1, 0] = 7  # memory of its own, and still shared
        assert found["view"][0, 0] == 7
    assert read_torch_file(path)["shared"][1, 0] != 7


def test_only_what_is_used_is_read(tmp_path: Path) -> None:
    """Storages of an archive are mapped: an optimizer's state beside the weights costs nothing."""
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"model": {"a": torch.ones(3)}, "optimizer": torch.zeros(30_000_000)}))
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_torch_file(path)["model"]["a"].tolist() == [1, 1, 1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10


def test_arrays_share_and_nest(tmp_path: Path) -> None:
    one = np.arange(3.0)
    content: dict[str, Any] = {"a": [one, (one, {"b": one})], "c": one}
    content["self"] = content
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    found = read_result_pickle(tmp_path / "a.pkl")
    assert found["a"][1][1]["b"] is found["c"] is found["a"][0] is found["a"][1][0] and found["self"] is found
    assert found["c"].tolist() == [0, 1, 2]


def test_the_type_that_was_refused_is_named(tmp_path: Path) -> None:
    import argparse

    for content, name in (
        ({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, r"argparse\.Namespace"),
        ({"model": {"a": torch.ones(1)}, "when": __import__("datetime").date(2024, 1, 1)}, r"datetime\.date"),
        (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
    ):
        (tmp_path / "a.pth").write_bytes(saved(content))
        with pytest.raises(InputError, match=rf"a\.pth: refused: its pickle asks for {name}, which is not data"):
            read_torch_file(tmp_path / "a.pth")


def test_python_2_and_numpy_1_wrote_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02}q\x00U\x05modelq\x01}q\x02U\x01aq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\n"
        b"q\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\x09(K\x01K\x02\x85q\ncnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87q\rRq"
        b"\x0e(K\x03U\x01<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x11tq\x12bss."
    )
    assert read_numpy_pickle(tmp_path / "a.pkl")["model"]["a"].tolist() == [1, 2]
