"""A classifier's file comes from anywhere: what its metadata say runs nothing, reads nothing, and takes no memory."""

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
from safetensors.torch import save_file

from tests.classifier.making import ARGS, tiny_model
from vitp_pipeline.classifier.backbones.create import create_vit
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.errors import IncompatibleError, UsageError


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pickle that makes a folder lies ready, no connection is made, and half a gigabyte must do."""
    torch.save({"x": Evil(tmp_path / "was-here")}, tmp_path / "evil.pth")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda *where: asked.append(where))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not asked and not (tmp_path / "was-here").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


STATE = {key: value.contiguous() for key, value in tiny_model().state_dict().items()}
CONFIG = json.loads(tiny_model().config.to_json())


def written(path: Path, **changes: Any) -> Path:
    save_file(STATE, path, {"vitp": json.dumps({**CONFIG, **changes})})
    return path


ARGUMENTS: list[dict[str, Any]] = [
    *({"checkpoint_path": path} for path in ("evil.pth", "/etc/passwd", "hf-hub:x/y")),
    {"pretrained": True},
    {"pretrained_cfg": {"file": "evil.pth"}},
    {"pretrained_cfg": "x"},
    {"pretrained_cfg_overlay": {"url": "http://localhost:9/x"}},
    {"pretrained_strict": False},
    {"features_only": True},
    {"scriptable": True},
    {"exportable": True},
    {"no_jit": True},
    {"cache_dir": "here"},
    {"in_chans": 10**9},
    {"num_classes": 10**9},
    {"img_size": 10**6},
    {"drop_path_rate": 0.1},
    {"device": "cuda"},
    {"block_fn": "os.system"},
    {"embed_layer": "os.system"},
    {"attn_layer": "os.system"},
    {"norm_layer": "os.system"},
    {"act_layer": "os.system"},
    {"__class__": "os.system"},
    *({"embed_dim": value} for value in (10**9, 10**30, 0, -1, 32.5, True, "32", [32], {}, 1e400)),
    *({"depth": value} for value in (10**9, 0, -1, "3")),
    *({"num_heads": value} for value in (10**9, 0, 3)),
    *({"mlp_ratio": value} for value in (1e9, 0, -1, float("nan"), float("inf"))),
    *({"patch_size": value} for value in (10**9, 0, [8], [8, 8, 8], "8")),
    {"reg_tokens": 10**9},
    {"init_values": 1e300},
    {"global_pool": "evil"},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_arguments_that_no_backbone_gets(arguments: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps({**json.loads(ARGS), **arguments})
    with pytest.raises(IncompatibleError, match=r"m\.safetensors: its tensors do not fit its configuration \(") as info:
        load_classifier(written(tmp_path / "m.safetensors", backbone_args=text))
    assert "\n" not in str(info.value)
    if arguments != {"num_heads": 3}:  # timm itself finds that these do not divide the width
        assert next(iter(arguments)) in str(info.value)
        with pytest.raises(UsageError, match="backbone_args"):  # a recipe is told at once
            TrainSettings(backbone_args=text)


NAMES = [
    *(
        "hf-hub:x/y",
        "hf_hub:x/y",
        "local-dir:.",
        "local-dir:/tmp",
        "https://localhost:9/x",
        "timm/vit_tiny_patch16_224",
    ),
    *("../vit_tiny_patch16_224", "/etc/passwd", "vit_tiny_patch16_224/..", "vit_tiny_patch16_224@main", "evil.pth", ""),
    *(
        "vit_tiny_patch16_224.a.b",
        "vit_tiny_patch16_224\x00",
        "vit_tiny_patch16_224\n",
        "vit_tinу_patch16_224",
        "v" * 10**6,
    ),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:30])
def test_names_that_are_not_timms_own(name: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"m\.safetensors: ") as info:
        load_classifier(written(tmp_path / "m.safetensors", backbone=name))
    assert len(str(info.value)) < 800 and "\n" not in info.value.message
    with pytest.raises(UsageError):
        create_vit(name, (32, 48))


FIELDS: list[dict[str, Any]] = [
    *(
        {"image_size": value}
        for value in ([10**9, 10**9], [32], [32, 48, 3], ["32", "48"], [0, 0], [-32, 48], 32, None)
    ),
    *({"classes": value} for value in ([], 3, "sky", [1, 2, 3], {"sky": 1}, [["sky"]], None, ["a"] * 200_000)),
    *({"depth": value} for value in (-1, 10**9, 1.5, "all", [1])),
    *({"feature_layers": value} for value in ([-1], [10**9], [1] * 5000, "1", [1.5], [[1]])),
    *({"point_dim": value} for value in (0, 3, -4, 10**9, "4")),
    *({"dropout": value} for value in (-1, 1, 1e9, float("nan"), "x")),
    {"drop_path": 2},
    {"prompt": "mask", "mask_form": "maft", "maft_layers": 10**9},
    *({key: "os.system"} for key in ("point_token", "attention", "head", "norm", "pos_embed", "prompt", "mask_form")),
    {"backbone_args": {"depth": 3}},
    {"backbone_args": "[" * 100_000},
    {"backbone_args": json.dumps({"a" * 10_000: 1})},
    {"backbone": 3},
    {"unknown": 1},
    {"__init__": 1},
    {"self": 1},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: str(fields)[:60])
def test_fields_that_cannot_be(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"m\.safetensors: ") as info:
        load_classifier(written(tmp_path / "m.safetensors", **fields))
    assert len(str(info.value)) < 800 and "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 200_000, "{" * 10, '{"a": 1', "\x00", '"' + "a" * 10**6])
def test_metadata_that_are_no_configuration(text: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors", {"vitp": text})
    with pytest.raises(IncompatibleError, match=r"m\.safetensors: ") as info:
        load_classifier(tmp_path / "m.safetensors")
    assert len(str(info.value)) < 800


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "vit_gigantic_patch14_224", "backbone_args": ""},
        {"backbone_args": json.dumps({"embed_dim": 8192, "depth": 128, "num_heads": 64})},
        {"backbone_args": json.dumps({**json.loads(ARGS), "reg_tokens": 256})},
        {"image_size": [65536, 65536], "backbone_args": json.dumps({**json.loads(ARGS), "patch_size": 1})},
        {"classes": [str(number) for number in range(100_000)]},
        {"head": "mlp"},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_a_configuration_of_larger_tensors_takes_no_memory(changes: dict[str, Any], tmp_path: Path) -> None:
    """Fifty gigabytes and more, if they were made before they are compared with the file's."""
    with pytest.raises(IncompatibleError, match=r"m\.safetensors: its tensors do not fit"):
        load_classifier(written(tmp_path / "m.safetensors", **changes))


def test_the_file_itself_is_good(tmp_path: Path) -> None:
    model = load_classifier(
        written(tmp_path / "m.safetensors", backbone_args=json.dumps({**json.loads(ARGS), "fc_norm": None}))
    )
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))
    images, points = torch.randn(1, 3, 32, 48), torch.rand(1, 4, 2)
    assert torch.equal(model(images, points), tiny_model()(images, points))
    trainable = {name for name, parameter in tiny_model().named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable
