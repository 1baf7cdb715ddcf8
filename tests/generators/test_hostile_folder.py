"""A transformers folder comes from anywhere: its JSON asks neither for code, nor for the Hub, nor for all memory."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from tests.generators.huggingface.test_adapter import DECODER, DETR, PREPROCESSOR, SWIN, TINY, write_config
from vitp_pipeline.errors import UserError
from vitp_pipeline.generators.huggingface.adapter import TransformersGenerator
from vitp_pipeline.generators.huggingface.folder import open_pretrained


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda *where: asked.append(where))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not asked and not (tmp_path / "was-here").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10


CONFIGS: list[dict[str, Any]] = [
    {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForUniversalSegmentation": "evil.Model"}},
    {"auto_map": {"AutoConfig": "owner/name--evil.Config"}},
    {"backbone_config": {**SWIN, "auto_map": {"AutoBackbone": "evil.Backbone"}}},
    {"quantization_config": {"quant_method": "evil"}},
    {"attn_implementation": "owner/name"},
    {"_attn_implementation": "owner/name:evil"},
    {"_attn_implementation_internal": "kernels-community/flash-attn"},
    {"attn_implementation": {"backbone_config": "owner/name"}},
    {"backbone_config": {**SWIN, "_attn_implementation": "owner/name"}},
    {"experts_implementation": "owner/name"},
    {"backbone_config": None, "backbone": "owner/name"},
    {"backbone_config": None, "backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": True},
    {"backbone": "hf-hub:owner/name"},
    {"backbone_kwargs": {"checkpoint_path": "evil.pth"}},
    {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:owner/name"}},
    {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50"}},
    {"backbone_config": {"model_type": "timm_wrapper", "architecture": "local-dir:/tmp"}},
    {"backbone_config": {"model_type": "no-such-type"}},
    {"backbone_config": "owner/name"},
    {"backbone_config": [SWIN]},
    {"decoder_config": {**DETR, "backbone": "owner/name"}},
    {"decoder_config": {**DETR, "backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:x/y"}}},
    *(
        {key: 10**9}
        for key in ("hidden_dim", "num_queries", "dim_feedforward", "encoder_layers", "num_attention_heads")
    ),
    {"decoder_layers": 10**5},
    {"hidden_dim": 1e308},
    {"hidden_dim": float("nan")},
    {"backbone_config": {**SWIN, "embed_dim": 10**9}},
    {"backbone_config": {**SWIN, "depths": [10**6] * 4}},
    {"backbone_config": {**SWIN, "depths": [1] * 10**6}},
    {"id2label": {str(k): "x" for k in range(10**6)}},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: str(changes)[:60])
def test_a_config_that_asks_for_more_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('was-here')\n")
    config = write_config(tmp_path / "model", "mask2former", PREPROCESSOR, **changes)
    with pytest.raises(UserError, match=r"config\.json: refused: ") as info:
        TransformersGenerator(config)
    assert "\n" not in str(info.value) and len(str(info.value)) < 700


SIZES: list[dict[str, Any]] = [
    {"size": 10**9},
    {"size": -1},
    {"size": 1.5},
    {"size": "800"},
    {"size": True},
    {"size": {"shortest_edge": 10**9}},
    {"size": {"shortest_edge": 640, "longest_edge": 10**12}},
    {"size": {"shortest_edge": [640]}},
    {"size": 800, "max_size": 10**9},
    {"image_mean": [0, 0]},
    {"image_mean": ["a", "b", "c"]},
    {"image_std": [0, 0, 0]},
    {"image_std": [1, 1, float("nan")]},
    {"image_std": 3},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_preprocessor_that_cannot_be_is_refused(sizes: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "model", "mask2former", sizes)
    with pytest.raises(UserError, match=r"preprocessor_config\.json: refused: "):
        open_pretrained(config)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "{", '{"model_type": ' * 500, "\x00"])
def test_files_that_are_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        open_pretrained(tmp_path / "config.json")


def saved(folder: Path, kind: str = "mask2former") -> Path:
    """A folder with weights, as `save_pretrained` writes it."""
    generator = TransformersGenerator(write_config(folder, kind, PREPROCESSOR))
    generator._model.save_pretrained(folder)
    return folder


def test_a_config_of_larger_tensors_than_its_weights_takes_no_memory(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "dim_feedforward": 10**6, "hidden_dim": 20_000}))
    with pytest.raises(UserError, match=r"asks for .* numbers, more than its weights can be"):
        TransformersGenerator(folder)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-here",)


def test_pickled_weights_are_read_by_the_one_reader(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    expected = TransformersGenerator(folder)._model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    found = TransformersGenerator(folder)._model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
    torch.save({**expected, "evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: refused: its pickle asks for (posix|nt)\.mkdir"):
        TransformersGenerator(folder)


@pytest.mark.parametrize("named", ["../evil.safetensors", "/etc/passwd", "other.bin", "", 3])
def test_an_index_names_the_weights_of_its_folder(named: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(UserError, match=r"index\.json: names files that are not weights of its folder"):
        open_pretrained(folder)


@pytest.mark.parametrize("kind", TINY)
def test_what_published_folders_say_is_let_through(kind: str, tmp_path: Path) -> None:
    old = {"backbone": None, "use_pretrained_backbone": False, "use_timm_backbone": False, "backbone_kwargs": None}
    if kind == "maskformer":
        old["decoder_config"] = {**DETR, "backbone": "resnet50", "use_timm_backbone": True, "backbone_config": None}
    more = {"_name_or_path": "owner/name", "architectures": ["X"], "torch_dtype": "float32", "ignore_value": 65535}
    assert open_pretrained(write_config(tmp_path / "model", kind, PREPROCESSOR, **old, **more)).model_type == kind
    assert DECODER["backbone_config"] is SWIN
