from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.generators.checkpoint import load_into, read_checkpoint


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_meta_of_mmengine_is_let_through(tmp_path: Path) -> None:
    """Log histories, numpy scalars and arrays, as mmengine's runner stores them beside the weights."""
    from mmengine.logging import HistoryBuffer

    content = {
        "meta": {"dataset_meta": {"classes": ("a", "b"), "palette": [[0, 0, 0]]}, "seed": np.int64(3)},
        "state_dict": OrderedDict(model().state_dict()),
        "message_hub": {
            "log_scalars": {"loss": HistoryBuffer([1.0, 2.0], [1, 1])},
            "runtime_info": {"lr": np.float32(0.1), "ids": np.arange(3, dtype=np.uint8)},
        },
    }
    checkpoint = read_checkpoint(saved(tmp_path / "a.pth", content))
    assert checkpoint.classes == ("a", "b")
    assert set(checkpoint.state_dict) == set(model().state_dict())


@pytest.mark.parametrize("zipped", [True, False])
def test_flat_and_prefixed_weights(tmp_path: Path, zipped: bool) -> None:
    source, target = model(), model()
    weights = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / "flat.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert checkpoint.classes is None
    load_into(target, checkpoint)
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


def test_safetensors(tmp_path: Path) -> None:
    source, target = model(), model()
    path = tmp_path / "a.safetensors"
    save_file(source.state_dict(), path, metadata={"classes": '["road", "sky"]'})
    checkpoint = read_checkpoint(path)
    assert checkpoint.classes == ("road", "sky")
    load_into(target, checkpoint)
    assert torch.equal(target[0].weight, source[0].weight)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_is_refused_uncalled(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "bad.pth", tmp_path / "was-here"
    content = {"state_dict": model().state_dict(), "meta": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"bad\.pth.*(posix|nt)\.mkdir"):
        read_checkpoint(path)
    assert not trace.exists()


class Getattr:
    def __reduce__(self):
        return getattr, (np.ndarray, "tofile")


def test_getattr_is_refused_outside_of_log_histories(tmp_path: Path) -> None:
    """mmengine's own pickles need it for HistoryBuffer; elsewhere it opens every door."""
    with pytest.raises(InputError, match=r"get\.pth.*builtins\.getattr"):
        read_checkpoint(saved(tmp_path / "get.pth", {"state_dict": model().state_dict(), "meta": Getattr()}))


class Unknown:
    pass


def test_an_unknown_type_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"odd\.pth.*Unknown"):
        read_checkpoint(saved(tmp_path / "odd.pth", {"state_dict": {}, "meta": Unknown()}))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pth: checkpoint not found"):
        read_checkpoint(tmp_path / "gone.pth")


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
@pytest.mark.parametrize("text", [b"", b"<html>not found</html>", b"\x80\x02"])
def test_damaged_file(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=name.replace(".", r"\.") + ".*again") as info:
        read_checkpoint(tmp_path / name)
    assert "weights_only" not in str(info.value)  # torch's text advises to run what is in it


def test_truncated_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "cut.pth", model().state_dict())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut\.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"m\nodel": 3}, {"state_dict": {}}, [torch.zeros(1)], {}])
def test_no_weights(tmp_path: Path, content: object) -> None:
    with pytest.raises(InputError, match=r"holds no state_dict.* Give a file of weights") as info:
        read_checkpoint(saved(tmp_path / "none.pth", content))
    assert "\n" not in info.value.message


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    weights = model().state_dict() | {"0.weight": torch.zeros(5, 3)}
    with pytest.raises(IncompatibleError, match=r"0\.weight is \(5, 3\), the model has \(2, 3\)"):
        load_into(model(), read_checkpoint(saved(tmp_path / "a.pth", weights)))


def test_missing_and_left_over_tensors_are_named(tmp_path: Path) -> None:
    weights = model().state_dict() | {f"more.{i}": torch.zeros(1) for i in range(7)}
    del weights["0.bias"]
    fault = r"missing 0\.bias, and not in the model more\.0, more\.1, more\.2, more\.3, more\.4 and 2 more"
    with pytest.raises(IncompatibleError, match=fault):
        load_into(model(), read_checkpoint(saved(tmp_path / "a.pth", weights)))
