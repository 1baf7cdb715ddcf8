"""Backbones with rotary positions: points are turned as patches of their place would be."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
import timm
import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from timm.models.eva import Eva
from torch import Tensor, nn

from tests.classifier.making import ARGS, tiny_model
from vitp_pipeline.classifier.backbones.rotary import knows_rotary, rotations
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.classifier.training.optim import parameter_groups
from vitp_pipeline.config.settings import TrainSettings

SMALL = [
    "vit_small_patch16_dinov3",
    "vit_small_patch16_dinov3_qkvb",
    "vit_small_plus_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_pe_spatial_tiny_patch16_512",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_224",
]
BASE = ["vit_base_patch16_rope_reg1_gap_256", "eva02_base_patch16_clip_224", "vit_base_patch16_lingbot"]
TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8}
ROTARY = [
    "vit_small_patch16_dinov3",
    "vit_small_patch16_rope_mixed_ape_224",
    "eva02_tiny_patch14_224",
    "vit_base_patch16_rope_reg1_gap_256",
]
"""All kinds of rotary positions, with and without a class token and a position table."""


def centers(grid: tuple[int, int], batch: int = 1) -> Tensor:
    rows, cols = ((2 * torch.arange(side) + 1) / side - 1 for side in grid)
    return torch.cartesian_prod(rows, cols).expand(batch, -1, -1)


def loud(name: str, size: tuple[int, int], **args: Any) -> Eva:
    """timm's own model, far from its first weights."""
    vit = timm.create_model(name, num_classes=0, img_size=size, **args).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in vit.named_parameters():
            scale = 0.05 if parameter.ndim == 2 or "patch_embed" in key else 0.3
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return vit


def ours(vit: Eva, name: str, args: dict[str, Any], **fields: Any) -> PointViT:
    size = vit.patch_embed.img_size
    model = PointViT(ModelConfig(name, ("a", "b", "c"), size, json.dumps(args), **fields)).eval()
    load_backbone_weights(model, vit.state_dict(), name)
    return model


def timms_patches(vit: Eva, images: Tensor) -> Tensor:
    tokens = vit.forward_features(images)
    if isinstance(vit.norm, nn.Identity):
        own = isinstance(vit.fc_norm, nn.Identity)
        tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:]) if own else vit.fc_norm(tokens)
    return tokens[:, vit.num_prefix_tokens :]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in BASE)])
@torch.no_grad()
def test_a_point_that_starts_as_a_patch_leaves_as_that_patch(name: str) -> None:
    """Read-only, so patches leave as timm's own forward has them, too."""
    side = 14 if "patch14" in name else 16
    grid = (3, 5)
    vit = loud(name, (3 * side, 5 * side))
    model = ours(vit, name, {}, point_token="patch", attention="read-only")
    images = torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    last: list[Tensor] = []
    model.backbone.blocks[-1].register_forward_hook(lambda *given: last.append(given[-1]))
    found = model.features(images, centers(grid, 2))
    expected = timms_patches(vit, images)
    assert expected.std(1).mean() > 0.1  # patches do differ
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model._feature_norm(last[0][:, -15:]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("point_token", ["linear", "rotary", "sampled"])
@pytest.mark.parametrize("name", ROTARY)
@torch.no_grad()
def test_forward_by_timms_own_parts(name: str, point_token: str) -> None:
    """In timm's order [class, registers, points, patches], a point having its patch's row of timm's own table."""
    vit = loud(name, (24, 40), **TINY)
    model = ours(vit, name, TINY, point_token=point_token)
    images = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    some = torch.tensor([7, 0, 14, 3])
    points = centers((3, 5), 2)[:, some]
    tokens, table = vit._pos_embed(vit.patch_embed(images))
    before = vit.num_prefix_tokens
    prefix, patches = tokens[:, :before], tokens[:, before:]
    own = torch.zeros(2, 0, 32)
    if point_token != "sampled":
        slot = model.point_slot
        if slot is None:
            slot = vit.pos_embed[0, 0]
        elif vit.cls_token is not None:
            assert torch.equal(slot, vit.cls_token.flatten())
        own = points @ model.point_layer.weight[:, :2].T + slot
        if point_token == "rotary" and vit.pos_embed is not None:
            own = own + vit.pos_embed[:, -15:][:, some]
        table = torch.cat([table[..., some, :], table], dim=-2)
    tokens = vit.norm_pre(torch.cat([prefix, own, patches], 1))
    for number, block in enumerate(vit.blocks):
        tokens = block(tokens, rope=table[number] if vit.rope_mixed else table)
    norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    expected = norm(tokens[:, -15:][:, some] if point_token == "sampled" else tokens[:, before : before + 4])
    torch.testing.assert_close(model.features(images, points), expected, atol=2e-5, rtol=1e-4)


# ---- angles ---------------------------------------------------------------------------------------------------------

GRIDS = [(1, 1), (2, 2), (4, 4), (3, 5), (1, 7), (16, 9), (37, 20)]


def dino(grid: tuple[int, int], **changes: Any) -> RotaryEmbeddingDinoV3:
    return RotaryEmbeddingDinoV3(16, feat_shape=grid, **changes)


def cat(grid: tuple[int, int], **changes: Any) -> RotaryEmbeddingCat:
    return RotaryEmbeddingCat(16, in_pixels=False, feat_shape=grid, **changes)


def mixed(grid: tuple[int, int], **changes: Any) -> RotaryEmbeddingMixed:
    torch.manual_seed(5)
    return RotaryEmbeddingMixed(32, 3, 2, feat_shape=grid, **changes)


KINDS = [
    (dino, {}),
    (dino, {"rotate_half": False}),
    (dino, {"grid_offset": 0.25, "grid_indexing": "xy"}),
    (dino, {"temperature": None, "min_period": 0.5, "max_period": 90.0}),
    (cat, {}),
    (cat, {"rotate_half": True}),
    (cat, {"grid_offset": 1.0, "grid_indexing": "xy"}),
    (cat, {"ref_feat_shape": (16, 12)}),
    (cat, {"ref_feat_shape": (16, 12), "grid_indexing": "xy", "grid_offset": 0.5}),
    (mixed, {}),
    (mixed, {"grid_indexing": "ij"}),
]


def tables(rope: nn.Module, grid: tuple[int, int], points: Tensor | None, unplaced: int, blocks: int) -> Tensor:
    """(blocks, B, H, T, 2d)"""
    return torch.stack(list(islice(rotations(rope, grid, points, unplaced), blocks)))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("make", "changes"), KINDS, ids=lambda value: getattr(value, "__name__", str(value)))
@torch.no_grad()
def test_turns_at_the_centers_are_timms_table(make: Any, changes: dict[str, Any], grid: tuple[int, int]) -> None:
    rope = make(grid, **changes)
    assert knows_rotary(rope)
    count = grid[0] * grid[1]
    found = tables(rope, grid, centers(grid, 2), 2, 3)
    theirs = rope.get_embed()
    expected = theirs[:, None] if theirs.ndim == 4 else theirs.expand(3, 1, 1, -1, -1)
    torch.testing.assert_close(found[..., count + 2 :, :], expected.expand_as(found[..., count + 2 :, :]), **CLOSE)
    torch.testing.assert_close(found[..., :count, :], found[..., count + 2 :, :], **CLOSE)
    sines, cosines = found[..., count : count + 2, :].chunk(2, -1)
    assert (sines == 0).all() and (cosines == 1).all()  # without a place: not turned at all
    alone = tables(rope, grid, None, 2, 3)
    torch.testing.assert_close(alone, found[:, :1, ..., count:, :])


CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_turns_between_the_centers(grid: tuple[int, int]) -> None:
    """timm's tables of a grid thrice as fine, of the same picture, have the places between."""
    fine = (3 * grid[0], 3 * grid[1])
    for indexing in ("ij", "xy"):
        found = tables(dino(grid, grid_indexing=indexing), grid, centers(fine), 0, 1)[0, 0, 0, : fine[0] * fine[1]]
        torch.testing.assert_close(found, dino(fine, grid_indexing=indexing).get_embed(), **CLOSE)

        rows, cols = (torch.arange(side) / 3 for side in fine)  # an index over 3, in patches of the coarse grid
        cells = torch.cartesian_prod(rows, cols)[None]
        points = 2 * (cells + 0.5) / torch.tensor(grid) - 1
        own, theirs = (cat(g, ref_feat_shape=(16, 12), grid_indexing=indexing) for g in (grid, fine))
        found = tables(own, grid, points, 0, 1)[0, 0, 0, : fine[0] * fine[1]]
        torch.testing.assert_close(found, theirs.get_embed(), **CLOSE)

        own, theirs = (mixed(g, grid_indexing=indexing) for g in (grid, fine))
        theirs.freqs.div_(3)
        found = tables(own, grid, points, 0, 3)[:, 0, :, : fine[0] * fine[1]]
        torch.testing.assert_close(found, theirs.get_embed(), **CLOSE)


@torch.no_grad()
def test_half_precision_does_not_move_points() -> None:
    """Neighboring pixels of a row of 2048: angles that differ keep differing in a model of 16 bits."""
    rope = dino((32, 128)).to(torch.bfloat16)
    points = torch.stack([torch.zeros(2), torch.tensor([0.9, 0.9 + 2 / 2048])], -1)[None]
    turned = tables(rope, (32, 128), points, 0, 1)[0, 0, 0, :2]
    assert turned.dtype == torch.float32 and (turned[0] - turned[1]).abs().max() > 1e-3


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"])
def test_what_learns(backbone: str) -> None:
    """The class token takes part; registers, table and frequencies do not decay, as timm has it."""
    model = tiny_model(backbone=backbone, backbone_args=ARGS, point_token="rotary").train()
    groups = parameter_groups(model, TrainSettings(lr=0.1, backbone_lr=0.01, weight_decay=0.5))
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        rate, decay = settings[id(parameter)]
        still = parameter.ndim < 2 or name.removeprefix("backbone.") in {"cls_token", "reg_token", "rope.freqs"}
        assert (rate, decay) == (0.01 if name.startswith("backbone.") else 0.1, 0.0 if still else 0.5), name
    model(torch.randn(2, 3, 32, 48), torch.rand(2, 4, 2) * 2 - 1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["vit_small_patch16_dinov3", "vit_tiny_patch16_224"])
def test_a_rotary_token_knows_its_place_from_the_start(backbone: str) -> None:
    """One content for all points, and no coordinate in it; still they look elsewhere."""
    args = json.dumps({**TINY, "init_values": 1.0})  # DINOv3's blocks begin by doing next to nothing
    model = tiny_model(backbone=backbone, point_token="rotary", backbone_args=args)
    assert model.point_slot is not None and not model.point_layer.weight.any()
    points = torch.rand(1, 6, 2) * 2 - 1
    features = model.features(torch.randn(1, 3, 32, 48), points)
    assert torch.pdist(features[0]).min() > 1e-3
