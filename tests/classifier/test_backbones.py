"""The families of timm's ViTs: weights by file as timm loads them, forward as timm's own parts give it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.classifier.making import tiny_model
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.classifier.weights import load_classifier, read_backbone, save_classifier
from vitp_pipeline.errors import IncompatibleError, UsageError

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
FAMILIES = [
    "vit_small_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",  # class token and registers without positions
    "vit_giant_patch14_dinov2",  # SwiGLU
    "vit_giant_patch14_reg4_dinov2",
    "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_clip_224.openai",  # a norm before the blocks
    "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_base_patch16_siglip_224",  # no class token, attention pooling
    "deit3_small_patch16_224",  # a class token without a position
    "deit_tiny_distilled_patch16_224",  # two class tokens
    "vit_medium_patch16_reg4_gap_256",  # no class token, norm behind the pooling
    "vit_so150m_patch16_reg4_gap_256",  # registers with positions
    "vit_so150m2_patch16_reg1_gap_256",
    "vit_base_patch16_xp_224",  # attention and MLP side by side
    "test_vit",  # resamples its table at every forward
]


def make(name: str, grid: tuple[int, int], point_token: str = "linear", **changes) -> PointViT:
    torch.manual_seed(1)
    patch = timm.create_model(name, num_classes=0, **SMALL).patch_embed.patch_size[0]
    size = (grid[0] * patch, grid[1] * patch)
    config = ModelConfig(name, ("a", "b", "c"), size, json.dumps(SMALL), point_token=point_token, **changes)
    return PointViT(config).eval()


def source(name: str, grid: tuple[int, int], classes: int = 0, seed: int = 3, **options) -> nn.Module:
    """timm's own model, every parameter drawn at random."""
    patch = timm.create_model(name, num_classes=0, **SMALL).patch_embed.patch_size[0]
    size = (grid[0] * patch, grid[1] * patch)
    vit = timm.create_model(name, num_classes=classes, img_size=size, **SMALL, **options).eval()
    if not options:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return vit


ROTARY = [
    "vit_small_patch16_dinov3_qkvb",
    "eva02_tiny_patch14_224",
    "eva_giant_patch14_224",  # a table alone
    "vit_pe_core_tiny_patch16_384",  # attention pooling
    "vit_pe_spatial_tiny_patch16_512",  # no norm
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_base_patch16_rope_reg1_gap_256",
]


@pytest.mark.parametrize("name", [*FAMILIES, *ROTARY])
def test_weights_of_a_file_arrive_as_timm_loads_them(name: str, tmp_path: Path) -> None:
    """Another grid, and not square: the table is resampled to timm's values."""
    pretrained = source(name, (6, 6), classes=7)
    save_file(pretrained.state_dict(), tmp_path / "vit.safetensors")
    grid = (4, 9)
    overlay = {"file": str(tmp_path / "vit.safetensors"), "num_classes": 7, "hf_hub_id": None, "custom_load": False}
    theirs = source(name, grid, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    model = make(name, grid)
    load_backbone_weights(model, read_backbone(tmp_path / "vit.safetensors"), "vit.safetensors")
    ours = model.backbone.state_dict()
    assert {k.removeprefix("fc_") for k in theirs if not k.startswith("attn_pool.")} == set(ours)
    for key, value in theirs.items():
        if not key.startswith("attn_pool."):
            assert torch.equal(ours[key.removeprefix("fc_")], value), key
    if model.backbone.pos_embed is not None:
        assert ours["pos_embed"].shape[1] - 36 in (0, 1, 2, 4, 5)  # rows of class tokens and registers
    if model.point_slot is not None and "cls_token" in theirs:
        assert torch.equal(model.point_slot, theirs["cls_token"].flatten())


@pytest.mark.parametrize("point_token", ["linear", "sampled"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_forward_of_a_family_by_timms_own_parts(name: str, point_token: str) -> None:
    grid = (3, 5)
    vit, model = source(name, grid), make(name, grid, point_token)
    load_backbone_weights(model, vit.state_dict(), "vit")
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *model.image_size, generator=draw)
    points = torch.rand(2, 6, 2, generator=draw) * 2 - 1

    tokens = vit._pos_embed(vit.patch_embed(images))  # [class tokens; registers; patches]
    tokens = tokens[:, vit.num_prefix_tokens - vit.num_reg_tokens :]
    if point_token == "linear":
        table = dict(vit.named_parameters()).get("pos_embed")
        if table.shape[1] > 15 + vit.num_reg_tokens:
            slot = table[0, 0]  # the class token's position, and not the class token
            assert model.point_slot is None
        else:
            slot = model.point_slot
        token = points @ model.point_layer.weight[:, :2].T + slot
        tokens = torch.cat([token, tokens], 1)
    tokens = vit.norm_pre(tokens)
    for block in vit.blocks:
        tokens = block(tokens)
    norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    if point_token == "linear":
        expected = norm(tokens[:, :6])
    else:
        mixed = [[bilinear(t[-15:], grid, *p.tolist()) for p in own] for t, own in zip(tokens, points, strict=True)]
        expected = norm(torch.stack([torch.stack(row) for row in mixed]))
    torch.testing.assert_close(model.features(images, points), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model(images, points), model.head(expected), atol=2e-5, rtol=1e-4)


def bilinear(patches: Tensor, grid: tuple[int, int], row: float, col: float) -> Tensor:
    """Between patch centers, the border held, from the definition."""
    (y, u), (x, v) = (
        (math.floor(at), at - math.floor(at))
        for at in ((p + 1) / 2 * n - 0.5 for p, n in zip((row, col), grid, strict=True))
    )

    def patch(i: int, j: int) -> Tensor:
        return patches[min(max(i, 0), grid[0] - 1) * grid[1] + min(max(j, 0), grid[1] - 1)]

    upper = (1 - v) * patch(y, x) + v * patch(y, x + 1)
    return (1 - u) * upper + u * ((1 - v) * patch(y + 1, x) + v * patch(y + 1, x + 1))


# ---- original files -------------------------------------------------------------------------------------------------


def original_dinov2(state: dict[str, Tensor], registers: bool) -> dict[str, Tensor]:
    """Meta's names: the MLP of the giant is w12 and w3, and the table has a class row also beside registers."""
    state = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for key, value in state.items()}
    state["mask_token"] = torch.ones(1, 32)
    if registers:
        row = torch.randn(1, 1, 32)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - row
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], 1)
    return state


def original_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names for the picture's half, and some of the text's."""
    found = {
        "logit_scale": torch.tensor(1.0),
        "token_embedding.weight": torch.ones(5, 32),
        "transformer.resblocks.0.ln_1.weight": torch.ones(32),
        "visual.proj": torch.ones(32, 16),
        "visual.class_embedding": state["cls_token"].flatten(),
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.conv1.weight": state["patch_embed.proj.weight"],
    }
    names = {"norm_pre": "ln_pre", "norm": "ln_post"}
    inner = {"norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj"}
    inner |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for key, value in state.items():
        if key.startswith("blocks."):
            new = key.replace("blocks.", "visual.transformer.resblocks.")
            for ours, theirs in inner.items():
                new = new.replace(ours, theirs)
            found[new] = value
        elif key.rsplit(".", 1)[0] in names:
            module, kind = key.rsplit(".", 1)
            found[f"visual.{names[module]}.{kind}"] = value
    return found


def original_mae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file with the decoder."""
    extra = {"decoder_embed.weight": torch.ones(8, 32), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    return {**state, "mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 16, 8), **extra}


ORIGINALS = [
    ("vit_giant_patch14_dinov2", lambda s: original_dinov2(s, registers=False)),
    ("vit_giant_patch14_reg4_dinov2", lambda s: original_dinov2(s, registers=True)),
    ("vit_base_patch16_clip_quickgelu_224.openai", original_clip),
    ("vit_base_patch16_224.mae", original_mae),
]


@pytest.mark.parametrize(("name", "write"), ORIGINALS, ids=[name for name, _ in ORIGINALS])
def test_original_files(name: str, write, tmp_path: Path) -> None:
    state = source(name, (3, 5)).state_dict()
    torch.save({"model": write(dict(state))}, tmp_path / "original.pth")
    model = make(name, (3, 5))
    load_backbone_weights(model, read_backbone(tmp_path / "original.pth"), "original.pth")
    ours = model.backbone.state_dict()
    assert set(ours) == set(state)
    for key, value in state.items():
        torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=0)


def test_original_of_another_patch_size_is_refused() -> None:
    name = "vit_base_patch16_clip_quickgelu_224.openai"
    state = original_clip(source(name, (3, 5)).state_dict())
    state["visual.conv1.weight"] = torch.ones(32, 3, 32, 32)
    with pytest.raises(IncompatibleError, match=r"vit\.pth: visual.conv1.weight is \(32, 3, 32, 32\)"):
        load_backbone_weights(make(name, (3, 5)), state, "vit.pth")


# ---- slots and sizes ------------------------------------------------------------------------------------------------


def test_a_slot_of_its_own_is_learned_at_the_rate_of_new_layers() -> None:
    from vitp_pipeline.classifier.training.loop import parameter_groups
    from vitp_pipeline.config.settings import TrainSettings

    model = make("vit_base_patch16_siglip_224", (2, 2))
    assert 0.01 < model.point_slot.std() < 0.03
    groups = parameter_groups(model, TrainSettings(lr=0.1, backbone_lr=0.01, weight_decay=0.5))
    (own,) = [g for g in groups if any(p is model.point_slot for p in g["params"])]
    assert (own["lr"], own["weight_decay"]) == (0.1, 0.0)
    model(torch.randn(1, 3, *model.image_size), torch.zeros(1, 2, 2)).square().sum().backward()
    assert model.point_slot.grad.abs().max() > 0
    assert make("vit_base_patch16_siglip_224", (2, 2), "sampled").point_slot is None
    assert make("vit_base_patch16_siglip_224", (2, 2), "patch").point_slot is None


@torch.no_grad()
def test_a_file_of_before_there_were_slots(tmp_path: Path) -> None:
    """Its points had none: the same as a slot of zero."""
    model = make("vit_base_patch14_reg4_dinov2", (2, 3))
    model.point_slot.zero_()
    save_classifier(model, tmp_path / "new.safetensors", {})
    state = read_backbone(tmp_path / "new.safetensors")
    del state["point_slot"]
    save_file(state, tmp_path / "old.safetensors", {"vitp": model.config.to_json()})
    old = load_classifier(tmp_path / "old.safetensors")
    images, points = torch.randn(1, 3, *model.image_size), torch.rand(1, 4, 2)
    assert torch.equal(old(images, points), model(images, points))


@torch.no_grad()
def test_two_to_one_input_of_the_released_size() -> None:
    model = make("vit_small_patch14_dinov2", (37, 74), "linear")
    assert model.image_size == (518, 1036) and model.backbone.pos_embed.shape == (1, 1 + 37 * 74, 32)
    logits = model(torch.randn(1, 3, 518, 1036), torch.tensor([[[-1.0, -1.0], [0.5, 0.9]]]))
    assert logits.shape == (1, 2, 3) and logits.isfinite().all()


def test_dropping_patches_is_refused() -> None:
    with pytest.raises(UsageError, match="patch_drop_rate"):
        tiny_model(backbone_args='{"embed_dim": 32, "num_heads": 2, "patch_drop_rate": 0.5}')
