"""Weights of backbones with rotary positions: by timm's names, by the originals' and under whatever was put before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.classifier.making import ARGS, tiny_model
from vitp_pipeline.classifier.backbones.create import create_vit
from vitp_pipeline.classifier.export import export_classifier
from vitp_pipeline.classifier.inference import point_logits
from vitp_pipeline.classifier.mask_prompt import MaskViT, make_classifier
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.classifier.weights import load_classifier, read_backbone, save_classifier
from vitp_pipeline.errors import IncompatibleError, UsageError

State = dict[str, Tensor]
SCALED = json.dumps({**json.loads(ARGS), "init_values": 1.0})  # else blocks begin by doing next to nothing
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def replaced(state: State, *pairs: tuple[str, str]) -> State:
    def name(key: str) -> str:
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        return key

    return {name(key): value for key, value in state.items()}


def dinov3(state: State) -> State:
    """Meta's: one bias of queries, keys and values, of which the keys' is masked out, and periods of the rotation."""
    state = replaced(state, ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens"))
    for key in [key for key in state if key.endswith("q_bias")]:
        stem = key.removesuffix("q_bias")
        queries, values = state.pop(key), state.pop(f"{stem}v_bias")
        state[f"{stem}qkv.bias"] = torch.cat([queries, torch.full_like(queries, torch.nan), values])
        state[f"{stem}qkv.bias_mask"] = torch.ones(96)
    return {**state, "mask_token": torch.ones(1, 32), "rope_embed.periods": torch.ones(4)}


def sapiens2(state: State) -> State:
    state = replaced(
        state,
        *(("patch_embed.proj.", "patch_embed.projection."), ("reg_token", "storage_tokens")),
        *((f"attn.{letter}_proj.", f"attn.w{letter}.") for letter in "qkv"),
        *((".gamma_1", ".attn.gamma.weight"), (".mlp.", ".ffn."), (".norm1.", ".ln1."), (".norm2.", ".ln2.")),
        *(("fc1.", "w12."), ("fc2.", "w3.")),
    )
    return {(f"ln1{key[4:]}" if key.startswith("norm.") else key): value for key, value in state.items()}


def perception(state: State) -> State:
    names = {"norm_pre.": "ln_pre.", "norm.": "ln_post.", ".norm1.": ".ln_1.", ".norm2.": ".ln_2."}
    inner = {"patch_embed.proj.": "conv1.", "blocks.": "transformer.resblocks.", "gamma_1": "ls_1.gamma"}
    inner |= {"gamma_2": "ls_2.gamma", "attn.qkv.": "attn.in_proj_", "attn.proj.": "attn.out_proj."}
    inner |= {"mlp.fc1.": "mlp.c_fc.", "mlp.fc2.": "mlp.c_proj."}
    state = replaced(state, *names.items(), *inner.items())
    state["positional_embedding"] = state.pop("pos_embed")[0]
    if "cls_token" in state:
        state["class_embedding"] = state.pop("cls_token").flatten()
    return state


def clip_of(state: State) -> State:
    return {"logit_scale": torch.ones(1), **{f"visual.{key}": value for key, value in perception(state).items()}}


def timms(state: State) -> State:
    return dict(state)


ORIGINALS: list[tuple[str, Callable[[State], State]]] = [
    ("vit_small_patch16_dinov3", timms),
    ("vit_small_patch16_rope_mixed_ape_224", timms),
    ("vit_small_patch16_dinov3_qkvb", dinov3),
    ("vit_small_patch16_dinov3", dinov3),
    ("vit_base_patch16_sapiens2", sapiens2),
    ("vit_pe_spatial_tiny_patch16_512", perception),
    ("vit_pe_core_tiny_patch16_384", clip_of),
]
WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    **{
        prefix: lambda s, prefix=prefix: {f"{prefix}.{key}": value for key, value in s.items()}
        for prefix in (
            "module",
            "_orig_mod",
            "backbone",
            "model.backbone",
            "teacher.backbone",
            "module.encoder._orig_mod",
        )
    },
    "teacher of two": lambda s: {
        "teacher": {f"backbone.{key}": value for key, value in s.items()},
        "student": {f"backbone.{key}": torch.zeros_like(value) for key, value in s.items()},
        "iteration": 7,
    },
    "trainer": lambda s: {"state_dict": {f"model.{key}": value for key, value in s.items()}, "epoch": 3},
}


def make(name: str, grid: tuple[int, int], **fields: Any) -> PointViT:
    args = {**SMALL, **({"num_kv_heads": 1} if "sapiens" in name else {})}
    side = 14 if "patch14" in name else 16
    config = ModelConfig(name, ("a", "b"), (grid[0] * side, grid[1] * side), json.dumps(args), **fields)
    return PointViT(config).eval()


@pytest.mark.parametrize(("name", "write"), ORIGINALS, ids=lambda given: getattr(given, "__name__", given))
def test_original_files_under_the_names_of_trainers(
    name: str, write: Callable[[State], State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    args = json.loads(make(name, (3, 5)).config.backbone_args)
    vit = timm.create_model(name, num_classes=0, img_size=(48, 80), **args)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter)
    for wrapping, wrap in WRAPPINGS.items():
        torch.save(wrap(write(vit.state_dict())), tmp_path / "w.pth")
        torch.manual_seed(4)
        model = make(name, (3, 5))
        load_backbone_weights(model, read_backbone(tmp_path / "w.pth"), "w.pth")
        ours = {key.removeprefix("fc_"): value for key, value in vit.state_dict().items()}
        ours = {key: value for key, value in ours.items() if not key.startswith("attn_pool.")}
        assert ours.keys() == model.backbone.state_dict().keys(), wrapping
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(value, ours[key]), (wrapping, key)
        if vit.cls_token is not None and model.point_slot is not None:
            assert torch.equal(model.point_slot, vit.cls_token.flatten())
    assert not capsys.readouterr().out  # timm prints


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("cls_token"), "lacks cls_token"),
        (lambda s: s.pop("reg_token"), "lacks reg_token"),
        (lambda s: s.pop("blocks.1.gamma_1"), "lacks blocks.1.gamma_1"),
        (lambda s: s.update({"blocks.x.gamma": torch.ones(1)}), "unknown tensor blocks.x.gamma"),
        (
            lambda s: s.update({"cls_token": torch.ones(1, 1, 8)}),
            r"cls_token is \(1, 1, 8\), the backbone wants",
        ),
        (lambda s: s.update({"patch_embed.proj.weight": torch.ones(32, 3, 14, 14)}), r"patch_embed.proj.weight is"),
        (lambda s: s.update({"patch_embed.proj.weight": torch.tensor(1.0)}), r"patch_embed.proj.weight is \(\)"),
        (lambda s: s.clear(), "lacks "),
    ],
)
def test_weights_that_do_not_fit(change: Callable[[State], Any], word: str) -> None:
    model = make("vit_small_patch16_dinov3", (2, 3))
    state = model.backbone.state_dict()
    change(state)
    with pytest.raises(IncompatibleError, match=word) as info:
        load_backbone_weights(model, state, "x.pth")
    assert str(info.value).startswith("x.pth") and "\n" not in str(info.value)


# ---- classifiers ----------------------------------------------------------------------------------------------------

BACKBONES = ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224", "eva02_tiny_patch14_224"]


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_a_classifier_is_read_back(backbone: str, tmp_path: Path) -> None:
    """Frequencies are no weights: they are computed anew. Half precision moves little."""
    model = tiny_model(backbone=backbone, point_token="rotary", backbone_args=ARGS)
    save_classifier(model, tmp_path / "m.safetensors", {})
    read = load_classifier(tmp_path / "m.safetensors")
    assert not any(value.is_meta for value in (*read.parameters(), *read.buffers()))
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    points = torch.rand(2, 5, 2) * 2 - 1
    logits = point_logits(model, images, points, precision="float32")
    assert torch.equal(point_logits(read, images, points, precision="float32"), logits)
    half = point_logits(read, images, points, precision="bfloat16")
    assert half.isfinite().all() and (half - logits).abs().max() < 0.2 * logits.abs().max()
    assert make_classifier(model.config).half()(images.half(), points).isfinite().all()


@pytest.mark.parametrize("size", [(65536, 65536), (48, 65536)], ids=str)
def test_a_large_image_takes_no_memory_before_there_is_one(size: tuple[int, int], tmp_path: Path) -> None:
    """Nothing among the weights says how large the grid is."""
    model = tiny_model(backbone="vit_small_patch16_dinov3", backbone_args=ARGS)
    fields = {**json.loads(model.config.to_json()), "image_size": size}
    save_file(model.state_dict(), tmp_path / "m.safetensors", {"vitp": json.dumps(fields)})
    read = load_classifier(tmp_path / "m.safetensors")
    assert sum(b.numel() for b in read.buffers()) < 1000


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backbone", BACKBONES[:2])
def test_export(backbone: str, suffix: str, tmp_path: Path) -> None:
    model = tiny_model(backbone=backbone, point_token="rotary", backbone_args=ARGS)
    assert export_classifier(model, tmp_path / f"m{suffix}") < 1e-4


@pytest.mark.parametrize("form", [{"mask_form": "attention"}, {"mask_form": "maft", "maft_layers": 2}], ids=str)
@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_224"])
@torch.no_grad()
def test_masks_as_prompts(name: str, form: dict[str, Any]) -> None:
    """They have no place, so they are not turned: a mask of all patches leaves as the class token, whose copy it is."""
    vit = timm.create_model(name, num_classes=0, img_size=(32, 48), **json.loads(SCALED)).eval()
    masks = make_classifier(ModelConfig(name, ("a", "b"), (32, 48), SCALED, prompt="mask", **form)).eval()
    assert isinstance(masks, MaskViT)
    load_backbone_weights(masks, vit.state_dict(), "x")
    images, coverage = torch.randn(2, 3, 32, 48), torch.rand(2, 5, 24)
    coverage[:, 2] = 1
    found = masks.features(images, coverage)
    assert found.std(1).min() > 0
    torch.testing.assert_close(found[:, 2:3], masks.features(images, coverage[:, 2:3]), atol=1e-5, rtol=1e-5)
    if form["mask_form"] == "attention":
        torch.testing.assert_close(found[:, 2], vit.fc_norm(vit.forward_features(images))[:, 0], atol=1e-5, rtol=1e-5)


# ---- refusals -------------------------------------------------------------------------------------------------------

REFUSED = [
    ("swin_tiny_patch4_window7_224", r"several resolutions \(4, 8, 16, 32 px\)"),
    ("pit_b_224", "several resolutions"),
    ("resnet50.a1_in1k", "several resolutions"),
    ("hiera_tiny_224", "several resolutions"),
    ("beit_base_patch16_224", "bias for the distance of two patches"),
    ("vit_relpos_base_patch16_224", "bias for the distance"),
    ("samvit_base_patch16", "bias for the distance"),
    ("mixer_b16_224", "no attention"),
    ("convmixer_768_32", "no attention"),
    ("xcit_nano_12_p16_224", "no attention mask"),
    ("cait_xxs24_224", "no attention mask"),
    ("naflexvit_base_patch16_gap", "how NaFlexVit puts its tokens together is not known"),
    ("vit_small_patch16_dinov4", "is no model of timm. Did you mean 'vit_small_patch16_dinov3'"),
    ("dinov3", "is no model of timm"),
]


@pytest.mark.parametrize(("name", "why"), REFUSED, ids=[name for name, _ in REFUSED])
def test_a_backbone_that_cannot_work_says_why(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as info:
        create_vit(name, (224, 224))
    assert "\n" not in str(info.value) and repr(name) in str(info.value)


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("vit_small_patch16_dinov3", {"image_size": (32, 40)}, r"not a multiple of \(16, 16\).*Use \[32, 32\]"),
        ("vit_small_patch16_dinov3", {"pos_embed": "offset"}, "belongs to released weights"),
        (
            "vit_small_patch16_dinov3",
            {"backbone_args": '{"patch_drop_rate": 0.5}'},
            "patch_drop_rate would",
        ),
        ("vit_small_patch16_dinov3", {"backbone_args": '{"reg_tokens": 4}'}, "timm cannot make the backbone"),
        ("vit_tiny_patch16_224", {"backbone_args": '{"rope_type": "mixed"}'}, "timm cannot make the backbone"),
        ("vit_small_patch16_dinov3", {"backbone_args": '{"rope_type": "mrope"}'}, "rope_type"),
        ("vit_base_patch16_rope_reg1_gap_256", {"prompt": "mask"}, "no class token"),
    ],
)
def test_settings_that_a_backbone_cannot_have(name: str, fields: dict[str, Any], why: str) -> None:
    small = json.dumps({"embed_dim": 32, "depth": 1, "num_heads": 2})
    with pytest.raises(UsageError, match=why) as info:
        config = {"backbone": name, "classes": ("a",), "image_size": (32, 48), "backbone_args": small, **fields}
        make_classifier(ModelConfig(**config))
    assert "\n" not in str(info.value)
