"""The names that training scripts give the tensors of a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vitp_pipeline.decoding.weight_names import backbone_weights, unwrapped
from vitp_pipeline.errors import InputError

VIT = {
    name: torch.rand(2)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")
}
OTHER = {name: torch.zeros(2) for name in VIT}
FILE = Path("w.pth")


def under(prefix: str, weights: dict[str, torch.Tensor] = VIT) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


STATE = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
CONTENTS: dict[str, Any] = {
    "plain": VIT,
    "state_dict": {"state_dict": VIT, "optimizer": STATE, "epoch": 3},
    "model": {"model": VIT},
    "DistributedDataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "both": under("_orig_mod.module."),
    "compiled inside": under("backbone._orig_mod."),
    "FSDP": under("_fsdp_wrapped_module.backbone._fsdp_wrapped_module."),
    "backbone": under("backbone."),
    "DINO": {"student": under("module.backbone.", OTHER), "teacher": under("backbone."), "epoch": 9},
    "DINO with a head": {"teacher": {**under("backbone."), "dino_head.mlp.0.weight": torch.zeros(3)}},
    "DINOv2": {"model": {**under("student.backbone.", OTHER), **under("teacher.backbone.")}, "optimizer": STATE},
    "DINOv2 in chunks": {k.replace("blocks.0.", "blocks.0.0."): v for k, v in under("teacher.backbone.").items()},
    "DINOv2 compiled by blocks": {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in VIT.items()},
    "Lightning": {"state_dict": {**under("model.backbone."), "model.head.weight": torch.zeros(3)}, "loops": STATE},
    "I-JEPA": {
        "encoder": under("module.", OTHER),
        "predictor": {"x": torch.ones(1)},
        "target_encoder": under("module."),
    },
    "timm with a mean": {"state_dict": OTHER, "state_dict_ema": VIT, "arch": "vit"},
    "DeiT with a mean": {"model": OTHER, "model_ema": VIT},
    "encoder of a segmenter": {**under("net.encoder."), "net.decoder.patch.weight": torch.ones(1)},
    "open_clip": {**under("visual.trunk."), "transformer.resblocks.0.weight": torch.ones(1)},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_backbone_is_found(name: str) -> None:
    found = backbone_weights(CONTENTS[name], FILE)
    assert found.keys() == VIT.keys()
    assert all(found[key] is tensor for key, tensor in VIT.items())


def test_clips_tower_keeps_its_own_names() -> None:
    clip = {"visual.class_embedding": torch.ones(2), "visual.conv1.weight": torch.ones(2), "logit_scale": torch.ones(1)}
    assert backbone_weights({"state_dict": under("module.", clip)}, FILE).keys() == clip.keys()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"left": VIT, "right": OTHER}, "left, right"),
        (
            {"online": under("backbone."), "momentum": under("backbone.", OTHER)},
            r"momentum\.backbone, online\.backbone",
        ),
        ({**VIT, **under("second.")}, "one at the top, second"),
        ({"teacher": {"a": VIT, "b": OTHER}}, r"teacher\.a, teacher\.b"),
    ],
)
def test_several_networks_are_named(content: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"w.pth: holds several networks: {named}. Save"):
        backbone_weights(content, FILE)


@pytest.mark.parametrize("content", [{}, [], None, torch.ones(2), {"epoch": 3}, {"model": [torch.ones(2)]}, "text"])
def test_no_network(content: Any) -> None:
    with pytest.raises(InputError, match=r"w\.pth: contains no state dict"):
        backbone_weights(content, FILE)


def test_other_tables_are_taken_as_they_are() -> None:
    """timm knows more layouts than these; which tensors they have, it says itself."""
    table = {"beit3.encoder.x": torch.ones(1), "norm.weight": torch.ones(1)}
    for content in (table, {"model": table}, {"state_dict": table, "optimizer": STATE}, {"model": {"teacher": table}}):
        assert backbone_weights(content, FILE).keys() == table.keys()


def test_two_tensors_never_get_one_name() -> None:
    both = {"a.module.b": torch.ones(1), "a.b": torch.zeros(1)}
    assert unwrapped(both) == both
