"""The authors' released layout, against the golden values of their code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitp_pipeline.classifier.backbones.tokens import offset_positions
from vitp_pipeline.classifier.released_export import to_official
from vitp_pipeline.classifier.released_files import export_official, import_official
from vitp_pipeline.classifier.released_layout import from_official
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.errors import IncompatibleError, InputError


def official_state(width: int = 384, depth: int = 12, classes: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict written from the published key list, not from our model."""
    draw = torch.Generator().manual_seed(seed)

    def t(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw) * 0.05

    state = {
        "pos_embed": t(1, 1370, width),
        "mask_token": t(1, width),
        "patch_embed.proj.weight": t(width, 3, 14, 14),
        "patch_embed.proj.bias": t(width),
        "cls_embeddings.weight": t(width, 2),
        "norm.weight": 1 + t(width),
        "norm.bias": t(width),
        "head.weight": t(classes, width),
        "head.bias": t(classes),
    }
    for i in range(depth):
        for name, shape in (
            ("norm1.weight", (width,)),
            ("norm1.bias", (width,)),
            ("attn.qkv.weight", (3 * width, width)),
            ("attn.qkv.bias", (3 * width,)),
            ("attn.proj.weight", (width, width)),
            ("attn.proj.bias", (width,)),
            ("ls1.gamma", (width,)),
            ("norm2.weight", (width,)),
            ("norm2.bias", (width,)),
            ("mlp.fc1.weight", (4 * width, width)),
            ("mlp.fc1.bias", (4 * width,)),
            ("mlp.fc2.weight", (width, 4 * width)),
            ("mlp.fc2.bias", (width,)),
            ("ls2.gamma", (width,)),
        ):
            state[f"blocks.{i}.{name}"] = t(*shape)
    return state


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        *(("cls_embeddings.weight", (384, numbers)) for numbers in (0, 1, 3, 5, 100)),
        *(("cls_embeddings.weight", shape) for shape in ((), (384,), (384, 2, 1))),
        *(("pos_embed", shape) for shape in ((), (3,), (1370, 384), (1, 1370, 384, 1))),
        *(("head.bias", shape) for shape in ((), (5, 2))),
        *((f"blocks.{number}.norm1.weight", (384,)) for number in ("x", "", "-1", "12", "99999999999999")),
    ],
)
def test_tensors_of_other_shapes_are_no_released_layout(key: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(IncompatibleError, match=r"released ViT-P"):
        from_official(official_state() | {key: torch.zeros(shape)})


def test_no_blocks_are_no_released_layout() -> None:
    with pytest.raises(IncompatibleError, match="width 384 and 0 blocks"):
        from_official({key: value for key, value in official_state().items() if not key.startswith("blocks.")})


def test_positions_are_read_with_the_offset() -> None:
    rows = torch.arange(37.0).repeat_interleave(37).view(1, -1, 1)
    found = offset_positions(rows, (37, 37)).view(37, 37)[:, 5]
    assert found[[0, 18, 36]].tolist() == pytest.approx([-0.00101, 17.92881, 35.92598], abs=2e-5)
    columns = torch.arange(37.0).repeat(37).view(1, -1, 1)
    found = offset_positions(columns, (37, 74)).view(37, 74)[5]
    golden = [-0.10552, 0.19060, 0.66599, 18.27266, 35.27415, 35.76914, 36.09610]
    assert found[[0, 1, 2, 37, 71, 72, 73]].tolist() == pytest.approx(golden, abs=2e-5)


def _slow_forward(
    state: dict[str, torch.Tensor], image: torch.Tensor, points: torch.Tensor, heads: int
) -> torch.Tensor:
    """The released forward from its description, one image, in plain torch: (N, K)."""
    width = state["pos_embed"].shape[2]
    patches = torch.nn.functional.conv2d(
        image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14
    )
    grid = patches.shape[-2:]
    x = patches.flatten(2).transpose(1, 2) + offset_positions(state["pos_embed"][:, 1:], tuple(grid))
    token = points @ state["cls_embeddings.weight"].T + state["pos_embed"][:, 0]
    x = torch.cat([token[None], x], 1)
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(z, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for i in range(depth):
        b = f"blocks.{i}"
        qkv = norm(x, f"{b}.norm1") @ state[f"{b}.attn.qkv.weight"].T + state[f"{b}.attn.qkv.bias"]
        q, k, v = qkv.view(1, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) * (width // heads) ** -0.5).softmax(-1) @ v
        y = attention.transpose(1, 2).reshape(1, -1, width) @ state[f"{b}.attn.proj.weight"].T
        x = x + state[f"{b}.ls1.gamma"] * (y + state[f"{b}.attn.proj.bias"])
        y = norm(x, f"{b}.norm2") @ state[f"{b}.mlp.fc1.weight"].T + state[f"{b}.mlp.fc1.bias"]
        y = torch.nn.functional.gelu(y) @ state[f"{b}.mlp.fc2.weight"].T + state[f"{b}.mlp.fc2.bias"]
        x = x + state[f"{b}.ls2.gamma"] * y
    return norm(x, "norm")[0, : len(points)] @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize("size", [(56, 84), (70, 70)])
def test_forward_is_the_released_one(size: tuple[int, int]) -> None:
    state = official_state()
    model = from_official(state, image_size=size)
    image, points = torch.randn(2, 3, *size), torch.rand(2, 7, 2) * 2 - 1
    with torch.inference_mode():
        found = model(image, points)
        expected = torch.stack([_slow_forward(state, i[None], p, heads=6) for i, p in zip(image, points, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.flatten(0, 1).shape == (14, 5)  # the released model gives (B·N, K)


def test_round_trip_and_files(tmp_path: Path) -> None:
    state = official_state(classes=3)
    torch.save(state, tmp_path / "released.pth")
    import_official(tmp_path / "released.pth", tmp_path / "ours.safetensors", ["a", "b", "c"])
    model = load_classifier(tmp_path / "ours.safetensors")
    assert model.classes == ("a", "b", "c") and model.config.pos_embed == "offset" and model.config.point_dim == 2
    export_official(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state if k != "mask_token")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "depth", "tensors", "parameters"), [(768, 12, 177, 86_696_598), (1024, 24, 345, 304_523_414)]
)
def test_sizes_of_the_released_models(width: int, depth: int, tensors: int, parameters: int) -> None:
    state = {k: torch.zeros(v.shape) for k, v in official_state(width, depth, 150).items()}
    assert len(state) == tensors and sum(v.numel() for v in state.values()) == parameters
    back = to_official(from_official(state)).state
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}


def test_refusals(tmp_path: Path) -> None:
    state = official_state()
    with pytest.raises(IncompatibleError, match="5 classes, 2 names"):
        from_official(state, ["a", "b"])
    with pytest.raises(IncompatibleError, match="cls_embeddings"):
        from_official({k: v for k, v in state.items() if k != "cls_embeddings.weight"})
    with pytest.raises(IncompatibleError, match="norm1"):
        from_official({k: v for k, v in state.items() if k != "blocks.3.norm1.weight"})
    torch.save({"state": print}, tmp_path / "code.pth")
    with pytest.raises(InputError, match=r"code\.pth"):
        import_official(tmp_path / "code.pth", tmp_path / "x.safetensors")


def test_original_dinov2_file_as_backbone() -> None:
    """The original file has a mask token and a class token; timm's names are the same otherwise."""
    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.model_config import ModelConfig
    from vitp_pipeline.classifier.pretrained import load_backbone_weights

    state = {k: v for k, v in official_state().items() if not k.startswith(("head", "cls_embeddings"))}
    state["cls_token"] = torch.zeros(1, 1, 384)
    model = PointViT(ModelConfig("vit_small_patch14_dinov2", ("a", "b"), (518, 518)))
    load_backbone_weights(model, dict(state), "dinov2_vits14_pretrain.pth")
    own = model.backbone.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items() if k != "mask_token")
