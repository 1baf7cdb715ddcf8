from __future__ import annotations

import codecs
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from vitp_pipeline.errors import InputError
from vitp_pipeline.generators.checkpoint import read_checkpoint
from vitp_pipeline.generators.safe_pickle import read_numpy_pickle


def saved(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_arrays_and_numbers_become_tensors(tmp_path: Path, protocol: int) -> None:
    content = {
        "model": OrderedDict(
            a=np.arange(6, dtype=np.float32).reshape(2, 3),
            b=np.float32(1.5),
            c=np.array(2, dtype=np.int64),
            d=np.arange(4, dtype=">f4")[::2],  # another byte order, and a stride
            e=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        ),
        "__author__": "someone",
        "matching_heuristics": True,
    }
    found = read_numpy_pickle(saved(tmp_path / "a.pkl", content, protocol))
    assert found["__author__"] == "someone" and found["matching_heuristics"] is True
    for name, value in content["model"].items():
        tensor = found["model"][name]
        assert tensor.tolist() == value.tolist() and tensor.is_contiguous()
    assert found["model"]["a"].dtype == torch.float32 and found["model"]["c"].dtype == torch.int64
    found["model"]["a"][0, 0] = 7  # writable


def test_pickles_of_python_2_and_of_numpy_2(tmp_path: Path) -> None:
    """`numpy.core` was renamed with numpy 2; strings of Python 2 hold the bytes of arrays as latin1."""
    content = pickle.dumps({"model": {"a": np.ones(3, np.float32), "b": np.float64(2)}}, protocol=2)
    now, then = b"numpy._core.multiarray", b"numpy.core.multiarray"
    old = content.replace(now, then)
    assert old != content
    for number, text in enumerate((content, old)):
        (tmp_path / f"{number}.pkl").write_bytes(text)
        found = read_checkpoint(tmp_path / f"{number}.pkl").state_dict
        assert found["a"].tolist() == [1, 1, 1] and found["b"].item() == 2


class Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.mkdir, ("was-here",), r"(posix|nt)\.mkdir"),
        (getattr, (np.ndarray, "tofile"), r"(builtins|__builtin__)\.getattr"),
        (torch.storage._load_from_bytes, (b"",), r"torch\.storage\._load_from_bytes"),  # a torch.load within
        (codecs.encode, ("uryyb", "rot13"), "the encoding rot13"),
        (np.zeros, (3,), r"numpy\.zeros"),
    ],
)
def test_what_is_not_data_is_refused_uncalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: object, arguments: tuple, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": {"a": np.zeros(1)}, "more": Calls(function, *arguments)}
    with pytest.raises(InputError, match=rf"bad\.pkl: refused: its pickle asks for {name}"):
        read_numpy_pickle(saved(tmp_path / "bad.pkl", content))
    assert not (tmp_path / "was-here").exists()


def test_torch_tensors_in_a_plain_pickle_are_refused(tmp_path: Path) -> None:
    """They would be read by a torch.load inside of the pickle."""
    with pytest.raises(InputError, match=r"refused: its pickle asks for torch\._utils"):
        read_numpy_pickle(saved(tmp_path / "a.pkl", {"model": {"a": torch.zeros(2)}}))


def test_objects_of_numpy_are_refused(tmp_path: Path) -> None:
    for content in (np.array([{}, None], dtype=object), np.array(["a", "b"])):
        with pytest.raises(InputError, match=r"a\.pkl: holds an array of"):
            read_numpy_pickle(saved(tmp_path / "a.pkl", {"model": {"a": content}}))


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"<html>", b"PK\x03\x04"])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pkl: not a readable pickle"):
        read_checkpoint(tmp_path / "a.pkl")


def test_truncated(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pkl", {"model": {"a": np.zeros(100)}})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"a\.pkl: not a readable pickle"):
        read_checkpoint(path)


def test_weights_under_model_of_a_pth(tmp_path: Path) -> None:
    """As detectron2's checkpointer writes them, with the state of the training beside."""
    content = {"model": {"module.a": torch.ones(2)}, "optimizer": {"state": {}}, "iteration": 5}
    torch.save(content, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").state_dict["a"].tolist() == [1, 1]
