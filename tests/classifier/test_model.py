from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

from tests.classifier.making import ARGS, tiny_model
from vitp_pipeline.classifier.backbones.tokens import sample_tokens
from vitp_pipeline.classifier.inference import average_of, mask_logits_of_points, point_logits
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.config.generate_proposals import POINT_POLICIES
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import normalize_points

H, W = 32, 48


def inputs(count: int = 7, batch: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, H, W, generator=generator)
    return images, torch.rand(batch, count, 2, generator=generator) * 2 - 1


SCALED = json.dumps({**json.loads(ARGS), "init_values": 1.0})
VARIANTS = [
    {},
    {"attention": "read-only"},
    {"point_token": "patch"},
    {"point_token": "patch", "attention": "read-only", "depth": 2},
    {"point_token": "sampled"},
    {"point_token": "sampled", "norm": "batch", "feature_layers": (1, 3)},
    {"feature_layers": (1, 3)},
    {"head": "mlp", "norm": "batch"},
    {"feature_layers": (1, 2), "depth": 2, "norm": "batch", "head": "mlp"},
    {"backbone": "vit_small_patch14_reg4_dinov2", "backbone_args": ARGS},
    {"point_token": "rotary"},
    {"backbone": "vit_small_patch16_rope_224", "backbone_args": SCALED},
    {
        "backbone": "vit_small_patch16_dinov3",
        "backbone_args": SCALED,
        "point_token": "rotary",
        "feature_layers": (1, 3),
    },
    {"backbone": "vit_small_patch16_rope_mixed_224", "backbone_args": SCALED, "point_token": "rotary", "depth": 2},
    {"backbone": "vit_pe_core_tiny_patch16_384", "backbone_args": ARGS, "point_token": "patch"},
    {"backbone": "vit_small_patch16_dinov3", "backbone_args": SCALED, "point_token": "sampled"},
    {"backbone": "eva02_tiny_patch14_224", "backbone_args": ARGS, "point_token": "rotary", "attention": "read-only"},
    {"backbone_args": json.dumps({**json.loads(ARGS), "class_token": False, "global_pool": "avg"})},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@torch.no_grad()
def test_what_holds_for_every_variant(variant: dict) -> None:
    model = tiny_model(**variant)
    images, points = inputs()
    logits = model(images, points)
    assert logits.shape == (2, 7, 3) and logits.isfinite().all()
    assert logits.std(1).min() > 1e-4  # points do differ

    order = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    torch.testing.assert_close(model(images, points[:, order]), logits[:, order], atol=1e-5, rtol=1e-5)

    doubled = model(images, torch.cat([points, points[:, 2:3]], 1))
    torch.testing.assert_close(doubled[:, 2], doubled[:, 7], atol=1e-5, rtol=1e-5)

    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[0, 7:] = valid[1, 7:] = False
    for filling in (0.0, 0.9, 50.0):  # whatever the padding says
        padded = torch.cat([points, torch.full((2, 3, 2), filling)], 1)
        torch.testing.assert_close(model(images, padded, valid)[:, :7], logits, atol=1e-5, rtol=1e-5)

    # a point is a point of zero height and width
    torch.testing.assert_close(model(images, torch.nn.functional.pad(points, (0, 2))), logits)
    if variant.get("point_token", "linear") == "linear":  # else the layer of coordinates begins at zero, or is none
        assert not torch.allclose(model(images, torch.nn.functional.pad(points, (0, 2), value=0.5)), logits)

    # images of a batch do not see each other
    torch.testing.assert_close(model(images[1:], points[1:]), logits[1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_differs_per_image() -> None:
    model = tiny_model()
    images, points = inputs()
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0, 4:] = False
    logits = model(images, points, valid)
    torch.testing.assert_close(logits[0, :4], model(images[:1], points[:1, :4])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1], model(images[1:], points[1:])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("point_token", ["linear", "patch"])
@torch.no_grad()
def test_read_only_points_are_independent_and_full_ones_are_not(point_token: str) -> None:
    images, points = inputs()
    alone = [points[:, n : n + 1] for n in range(7)]
    readers = tiny_model(attention="read-only", point_token=point_token)
    torch.testing.assert_close(
        readers(images, points), torch.cat([readers(images, p) for p in alone], 1), atol=1e-5, rtol=1e-5
    )
    full = tiny_model(point_token=point_token)
    assert (full(images, points) - torch.cat([full(images, p) for p in alone], 1)).abs().max() > 1e-3


@torch.no_grad()
def test_patch_token_at_a_patch_center_is_that_patchs_token() -> None:
    """At initialization the point goes through the blocks as the patch under it."""
    model = tiny_model(point_token="patch", attention="read-only")
    images, _ = inputs()
    rows, cols = torch.meshgrid(torch.arange(H // 8), torch.arange(W // 8), indexing="ij")
    centers = torch.stack([rows, cols], -1).flatten(0, 1) * 8 + 4  # pixels of the input
    points = torch.from_numpy(normalize_points(centers.numpy(), (H, W)))[None].expand(2, -1, -1)
    vit = model.backbone
    patches = vit.patch_embed(images) + vit.pos_embed[:, 1:]
    torch.testing.assert_close(sample_tokens(patches, vit.patch_embed.grid_size, points), patches, atol=1e-5, rtol=1e-5)
    tokens = patches
    for block in vit.blocks:  # the plain ViT without its CLS token
        tokens = block(tokens)
    torch.testing.assert_close(model(images, points), model.head(vit.norm(tokens)), atol=1e-4, rtol=1e-4)


def test_sampled_tokens_are_bilinear_and_hold_the_border() -> None:
    patches = torch.arange(6.0)[None, :, None] * torch.tensor([1.0, 10.0])  # grid 2×3
    at = torch.tensor([[[-0.5, -2 / 3], [-0.5, -1 / 3], [0.0, -2 / 3], [-1.0, -1.0], [1.0, 1.0]]])
    found = sample_tokens(patches, (2, 3), at)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.0, 0.5, 1.5, 0.0, 5.0]))
    torch.testing.assert_close(found[0, :, 1], 10 * found[0, :, 0])


@torch.no_grad()
def test_linear_token_is_the_papers() -> None:
    """Tokens [points; registers; patches] by hand: Linear(coordinates) + the CLS slot of the position table."""
    model = tiny_model()
    images, points = inputs()
    vit = model.backbone
    token = torch.nn.functional.pad(points, (0, 2)) @ model.point_layer.weight.T + vit.pos_embed[:, :1]
    tokens = torch.cat([token, vit.patch_embed(images) + vit.pos_embed[:, 1:]], 1)
    for block in vit.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(model(images, points), model.head(vit.norm(tokens)[:, :7]), atol=1e-5, rtol=1e-5)


HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("variant", [{}, {"point_token": "patch"}], ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@torch.no_grad()
def test_neighboring_columns_stay_apart_in_half_precision(variant: dict, dtype: torch.dtype) -> None:
    """Bit for bit what float32 makes of coordinates; as bfloat16, 2048 columns would be some 400 different ones."""
    model = tiny_model(**variant)
    torch.nn.init.trunc_normal_(model.point_layer.weight, std=0.02)
    columns = np.stack([np.full(2048, 700), np.arange(2048)], 1)
    points = torch.from_numpy(normalize_points(columns, (1024, 2048)))[None]
    exact = model.point_layer(torch.nn.functional.pad(points, (0, 2)))
    assert len(exact[0].unique(dim=0)) == 2048
    images, _ = inputs(batch=1)
    with torch.autocast("cpu", dtype):
        assert torch.equal(model.point_layer(torch.nn.functional.pad(points, (0, 2))), exact)
        tokens = model._tokens(images, points)[0, :2048]
        assert tokens.dtype == torch.float32 and len(tokens.unique(dim=0)) == 2048
        assert model(images, points).isfinite().all()


@pytest.mark.parametrize("variant", [{}, {"point_token": "patch"}, {"point_token": "sampled"}], ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@torch.no_grad()
def test_fewer_bits_do_not_reach_the_point_layer(variant: dict, dtype: torch.dtype) -> None:
    """The model in half precision: its point layer keeps its weights, and the places of points their float32."""
    model, images, points = tiny_model(**variant), *inputs()
    before = {k: v.clone() for k, v in model.point_layer.state_dict().items()}
    model = model.to(dtype)
    assert all(torch.equal(v, before[k]) for k, v in model.point_layer.state_dict().items())
    assert {p.dtype for k, p in model.named_parameters() if "point_layer" not in k} == {dtype}
    logits = model(images.to(dtype), points)
    assert logits.dtype == dtype and logits.isfinite().all()
    patches = torch.randn(1, 24, 32).to(dtype)
    torch.testing.assert_close(
        sample_tokens(patches, (4, 6), points[:1]),
        sample_tokens(patches.float(), (4, 6), points[:1]).to(dtype),
        rtol=0,
        atol=0,
    )


def test_the_point_layer_learns_in_float32_under_autocast() -> None:
    model, (images, points) = tiny_model(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        model(images, points).float().square().sum().backward()
    assert model.point_layer.weight.grad.dtype == torch.float32
    same = torch.nn.Linear(4, 32, bias=False).double()
    for number in range(4):  # the gradient of a sum of products, by a product in float64
        same.weight.data.copy_(model.point_layer.weight)
        out = torch.nn.functional.pad(points, (0, 2))
        (gradient,) = torch.autograd.grad(model.point_layer(out)[..., number].sum(), model.point_layer.weight)
        (expected,) = torch.autograd.grad(same(out.double())[..., number].sum(), same.weight)
        torch.testing.assert_close(gradient.double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_flip_averages_the_flipped_view() -> None:
    model = tiny_model(point_token="patch", attention="read-only")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, H, W), generator=generator, dtype=torch.uint8)
    pixels = torch.randint(0, 32, (9, 2), generator=generator).numpy()
    points = torch.from_numpy(normalize_points(pixels, (H, W)))[None]
    flipped = torch.from_numpy(normalize_points(np.stack([pixels[:, 0], W - 1 - pixels[:, 1]], 1), (H, W)))[None]
    one = point_logits(model, images, points).log_softmax(-1)
    other = point_logits(model, images.flip(-1), flipped).log_softmax(-1)
    torch.testing.assert_close(point_logits(model, images, points, flip=True), (one + other) / 2, atol=1e-5, rtol=1e-5)


def test_initialization_as_released() -> None:
    torch.manual_seed(0)
    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.model_config import ModelConfig

    model = PointViT(ModelConfig("vit_small_patch14_dinov2", tuple(map(str, range(150))), (28, 28)))
    assert 0.018 < model.point_layer.weight.std() < 0.022 and 0.018 < model.head.weight.std() < 0.022
    assert model.point_layer.bias is None and not model.head.bias.any()
    patch = tiny_model(point_token="patch")
    assert not patch.point_layer.weight.any()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"backbone": "resnet18", "backbone_args": ""}, "resnet18"),
        ({"backbone": "no_such_vit"}, "no_such_vit"),
        ({"depth": 4}, "3 blocks"),
        ({"feature_layers": (3,), "depth": 2}, "feature_layers"),
        ({"feature_layers": (0,)}, "feature_layers"),
        ({"image_size": (32, 50)}, "50"),
        ({"backbone_args": '{"nonsense": 1}'}, "nonsense"),
        ({"backbone_args": "{"}, "vit_tiny"),
        ({"backbone_args": "3"}, "vit_tiny"),
        ({"backbone_args": '{"embed_dim": 32, "num_heads": 3}'}, "vit_tiny"),
    ],
)
def test_models_that_cannot_be(changes: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        tiny_model(**changes)


# ---- pre-trained weights --------------------------------------------------------------------------------------------


def pretrained(**changes) -> torch.nn.Module:
    torch.manual_seed(7)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=(32, 48), **{**json.loads(ARGS), **changes}
    )


@pytest.mark.parametrize("variant", [{}, {"depth": 2}, {"norm": "batch"}, {"feature_layers": (1, 2)}], ids=str)
def test_backbone_weights_arrive(variant: dict) -> None:
    vit, model = pretrained(), tiny_model(**variant)
    load_backbone_weights(model, vit.state_dict(), "x.pth")
    theirs = vit.state_dict()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    assert len(model.backbone.blocks) == variant.get("depth", 3)


def test_position_table_is_resampled_to_the_grid() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, **json.loads(ARGS))
    model = tiny_model()
    with torch.no_grad():  # a table linear in the row keeps being so
        rows = torch.arange(8.0).repeat_interleave(8)
        vit.pos_embed.copy_(torch.cat([torch.zeros(1), rows])[None, :, None].expand_as(vit.pos_embed))
    load_backbone_weights(model, vit.state_dict(), "x.pth")
    table = model.backbone.pos_embed[0, 1:].view(4, 6, -1)
    assert model.backbone.pos_embed.shape == (1, 25, 32)
    torch.testing.assert_close(table, table[:, :1, :1].expand_as(table))  # the same in a row
    assert (table.diff(dim=0) > 1).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc1.weight"), r"lacks blocks.1.mlp.fc1.weight"),
        (lambda s: s.update({"blocks.0.extra": torch.ones(1)}), r"unknown tensor blocks.0.extra"),
        (lambda s: s.update({"norm.weight": torch.ones(3)}), r"norm.weight is \(3,\), the backbone wants \(32,\)"),
        (lambda s: s.update({"patch_embed.proj.weight": torch.ones(32, 3, 4, 4)}), r"patch_embed.proj.weight"),
    ],
)
def test_weights_that_do_not_fit(change, word: str) -> None:
    state = pretrained().state_dict()
    change(state)
    with pytest.raises(IncompatibleError, match=word) as info:
        load_backbone_weights(tiny_model(), state, "x.pth")
    assert str(info.value).startswith("x.pth")


def test_sampled_points_read_the_patches() -> None:
    """At a patch's center the features are that patch's own after the block, on a common scale; between, a mix."""
    model = tiny_model(point_token="sampled", feature_layers=(1, 3), norm="none")
    images = torch.randn(1, 3, 32, 48)
    vit = model.backbone
    tokens, after = vit.patch_embed(images) + vit.pos_embed[:, 1:], {}
    for number, block in enumerate(vit.blocks, 1):
        tokens = block(tokens)
        after[number] = tokens
    # patch (row 2, column 1) of the 4×6 grid, and the middle between it and its right neighbor
    points = torch.tensor([[[2 * (2 + 0.5) / 4 - 1, 2 * 1.5 / 6 - 1], [2 * (2 + 0.5) / 4 - 1, 2 * 2.0 / 6 - 1]]])
    found = model.features(images, points)[0]
    own, right = 2 * 6 + 1, 2 * 6 + 2
    for slot, number in enumerate((1, 3)):
        piece = found[:, slot * 32 : (slot + 1) * 32]
        expected = [after[number][0, own], (after[number][0, own] + after[number][0, right]) / 2]
        for value, token in zip(piece, expected, strict=True):
            z = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
            torch.testing.assert_close(value, z, atol=1e-4, rtol=1e-4)


def test_points_of_a_mask_are_averaged_as_probabilities() -> None:
    logits = 5 * torch.randn(2, 12, 7, generator=torch.Generator().manual_seed(0))
    named = mask_logits_of_points(logits, 4)
    for image in range(2):
        for mask in range(3):
            mean = logits[image, 4 * mask : 4 * mask + 4].double().softmax(-1).mean(0)
            torch.testing.assert_close(named[image, mask].softmax(-1).double(), mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mask_logits_of_points(logits, 4, 0.5), 2 * named)
    assert mask_logits_of_points(torch.tensor([[[-900.0, 0.0]]])).isfinite().all()


def test_points_of_a_mask_are_averaged_in_log_space() -> None:
    logits = 5 * torch.randn(2, 12, 7, generator=torch.Generator().manual_seed(0))
    named = mask_logits_of_points(logits, 4, average="log-probabilities")
    for image in range(2):
        for mask in range(3):
            product = logits[image, 4 * mask : 4 * mask + 4].double().softmax(-1).prod(0) ** 0.25
            torch.testing.assert_close(
                named[image, mask].softmax(-1).double(), product / product.sum(), atol=1e-6, rtol=1e-5
            )
    repeated = logits[:, ::4].repeat_interleave(4, 1)  # a mask with one maximum
    alone = mask_logits_of_points(logits[:, ::4])
    for average in ("probabilities", "log-probabilities"):
        same = mask_logits_of_points(repeated, 4, average=average)
        torch.testing.assert_close(same.softmax(-1), alone.softmax(-1))
    assert [p for p in POINT_POLICIES if average_of(p) == "log-probabilities"] == ["local_maxima"]
    assert average_of("local_maxima", "probabilities") == "probabilities"
