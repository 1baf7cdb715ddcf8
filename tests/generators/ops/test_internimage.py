"""InternImage against the authors' numbers."""

from __future__ import annotations

import pytest
import torch

from tests.generators.filling import fill, waves
from vitp_pipeline.generators.ops.internimage import SIZES, Block, DropPath, InternImage

COUNTS = {
    "T": (28_769_520, 685),
    "S": (48_502_560, 743),
    "B": (94_909_920, 743),
    "L": (218_952_370, 831),
    "XL": (328_971_228, 875),
    "H": (1_073_122_480, 1335),
    "G": (3_052_781_184, 1273),
}
HUGE = {
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "level2_post_norm": True,
    "level2_post_norm_block_ids": (0, 2),
}
TINY = {
    "H": {"depths": (1, 1, 3, 1), "res_post_norm": True, **HUGE},
    "G": {"depths": (1, 1, 3, 1), "post_norm": True, **HUGE},
    "L": {"depths": (1, 1, 2, 1), "post_norm": True, "layer_scale": 1.0, "offset_scale": 2.0},
    "T": {"depths": (1, 1, 2, 1), "layer_scale": 1.0},
}
TINY_COUNTS = {"H": (185, 520_856), "G": (161, 519_384), "L": (127, 453_106), "T": (135, 453_586)}
# Per stage: mean, mean of the absolute values, then four entries at the places of `entries`.
GOLDEN = {
    "H": (
        (-0.002990, 0.869926, 1.265114, 0.660561, 0.057353, -0.433442),
        (-0.009398, 0.811290, -3.375402, 0.009085, 0.502231, -0.335676),
        (0.020258, 0.785833, 1.350789, 1.209021, 1.184615, -0.740930),
        (0.012158, 0.789548, 1.386584, 1.165787, -1.204951, 0.683922),
    ),
    "G": (
        (0.020220, 0.873485, 0.278060, 1.617953, -0.978838, 0.053588),
        (0.005410, 0.814329, -1.196596, 0.824848, 2.413567, 0.179544),
        (-0.020090, 0.839201, 0.270620, -1.088175, 0.287311, -0.133406),
        (-0.010733, 0.818748, 0.092658, 0.612732, 0.442368, 0.966080),
    ),
    "L": (
        (0.074305, 1.463351, 0.626815, 0.215690, -1.662905, -1.167583),
        (-0.085516, 1.285260, -2.703316, 1.505915, 1.905583, -1.853501),
        (0.041426, 1.964414, 3.294810, -4.768389, 1.298333, 6.727145),
        (-0.011931, 1.322830, -1.043641, 0.672391, 3.551778, 2.287178),
    ),
    "T": (
        (0.021487, 0.844859, 0.451807, -0.723671, -0.506591, -0.331635),
        (0.015609, 0.794892, 0.338694, 0.092636, 1.809803, -1.085939),
        (0.007629, 0.810348, -0.603569, -2.008884, -1.042199, -0.688989),
        (-0.008341, 0.806531, 1.543962, 0.228187, 0.054146, 1.505770),
    ),
}


def tiny(name: str, **more) -> InternImage:
    return InternImage(channels=16, groups=(2, 4, 8, 16), drop_path_rate=0.0, **TINY[name], **more)


def picture() -> torch.Tensor:
    c, h, w = torch.meshgrid(*(torch.arange(n).double() for n in (3, 32, 48)), indexing="ij")
    return (torch.sin(0.9 * c + 0.13 * h + 0.17 * w) + 0.5 * torch.cos(0.05 * h * w + c))[None]


def entries(shape: torch.Size) -> list[tuple[int, int, int]]:
    channels, height, width = shape[1:]
    middle = (1, height // 2, width // 2)
    return [(0, 0, 0), middle, (channels // 2, height - 1, 0), (channels - 1, height - 1, width - 1)]


@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_tensors_of_the_published_sizes(size: str) -> None:
    with torch.device("meta"):
        model = InternImage(**SIZES[size])
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    assert (parameters, len(model.state_dict())) == COUNTS[size]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TINY)
def test_golden_backbone(name: str, dtype: torch.dtype) -> None:
    model = fill(tiny(name).to(dtype)).eval()
    state = model.state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == TINY_COUNTS[name]
    outputs = model(picture().to(dtype))
    for stage, (output, golden) in enumerate(zip(outputs, GOLDEN[name], strict=True)):
        assert output.shape == (1, 16 << stage, *((8, 12), (4, 6), (2, 3), (1, 2))[stage]) and output.is_contiguous()
        found = [output.mean(), output.abs().mean(), *(output[0][place] for place in entries(output.shape))]
        torch.testing.assert_close(torch.stack(found).double(), torch.tensor(golden).double(), atol=1e-5, rtol=0)


BLOCKS = {
    "H": (
        {"res_post_norm": True, "dw_kernel_size": 5, "center_feature_scale": True},
        26,
        (0.400639, 1.008471),
        {
            (0, 0): (1.809005, 0.314330, -1.560627, 0.621177, -1.617883, 1.106733, 3.119054, 0.154249),
            (1, 2): (-0.371015, 0.097600, 2.833254, -0.683884, -0.005878, 2.178139, 0.499283, -0.391198),
            (3, 4): (-0.542702, 0.477554, 2.925169, -1.945938, 0.200804, 0.547318, -1.198255, -0.727100),
        },
    ),
    "L": (
        {"post_norm": True, "layer_scale": 1.0, "offset_scale": 2.0},
        22,
        (0.326014, 1.625099),
        {
            (0, 0): (-1.616811, 1.705903, 0.690618, 3.033230, -0.437095, 1.803206, 1.979952, -2.412996),
            (1, 2): (-0.902369, 1.726378, 0.763468, 2.606504, -0.882807, 1.738179, 2.058293, -3.690708),
            (3, 4): (-1.016639, 0.539885, 0.210311, 1.034558, 0.290172, 0.465161, 0.484836, -3.645526),
        },
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", BLOCKS)
def test_golden_block(name: str) -> None:
    options, tensors, totals, pixels = BLOCKS[name]
    block = fill(Block(8, 2, **options).double())
    assert len(block.state_dict()) == tensors
    out = block(waves(0.0, 0.2, 0.3, 0.4, size=(1, 4, 5, 8)))
    assert (out.mean().item(), out.abs().mean().item()) == pytest.approx(totals, abs=2e-6)
    for (row, column), values in pixels.items():
        torch.testing.assert_close(out[0, row, column], torch.tensor(values).double(), atol=2e-6, rtol=0)


def test_names_are_the_published_ones() -> None:
    """Facts §5.1, one of each family."""
    state = tiny("H").state_dict()
    shapes = {
        "patch_embed.conv1.weight": (8, 3, 3, 3),
        "patch_embed.norm1.1.weight": (8,),
        "patch_embed.norm2.1.bias": (16,),
        "levels.0.blocks.0.norm1.0.weight": (16,),
        "levels.0.blocks.0.dcn.dw_conv.0.weight": (16, 1, 5, 5),
        "levels.0.blocks.0.dcn.dw_conv.1.1.weight": (16,),
        "levels.1.blocks.0.dcn.offset.weight": (72, 32),
        "levels.1.blocks.0.dcn.mask.bias": (36,),
        "levels.0.blocks.0.dcn.center_feature_scale_proj_weight": (2, 16),
        "levels.3.blocks.0.res_post_norm1.0.bias": (128,),
        "levels.0.blocks.0.mlp.fc1.weight": (64, 16),
        "levels.3.norm.0.weight": (128,),
        "levels.2.post_norms.1.0.weight": (64,),
        "levels.0.downsample.conv.weight": (32, 16, 3, 3),
        "levels.0.downsample.norm.1.weight": (32,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert tuple(tiny("T").state_dict()["levels.0.blocks.0.gamma1"].shape) == (16,)


@torch.no_grad()
def test_odd_sides_and_a_choice_of_stages() -> None:
    sizes = [tuple(output.shape[-2:]) for output in tiny("T", out_indices=(1, 3)).eval()(torch.zeros(2, 3, 45, 33))]
    assert sizes == [(6, 5), (2, 2)]


@torch.no_grad()
def test_bf16_is_close_to_float32() -> None:
    exact = fill(tiny("H")).eval()(picture().float())
    low = fill(tiny("H").bfloat16()).eval()(picture().bfloat16())
    for expected, got in zip(exact, low, strict=True):
        assert got.dtype == torch.bfloat16
        difference = (got.float() - expected).square().mean().sqrt()
        assert difference < 0.05 * expected.square().mean().sqrt()


def test_training_reaches_every_parameter_with_and_without_checkpoints() -> None:
    """What is saved or made again does not change a gradient."""
    gradients = []
    for with_cp in (False, True):
        model = fill(tiny("H", with_cp=with_cp)).train()
        sum(output.square().mean() for output in model(picture().float())).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_drop_path_leaves_whole_images_out() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    per_image = drop(torch.ones(4000, 2, 2, 3)).flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert sorted(set(per_image[:, 0].tolist())) == pytest.approx([0, 4 / 3])
    assert per_image.mean() == pytest.approx(1, abs=0.03)
    rates = [block.drop_path.rate for level in InternImage().levels for block in level.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 30).tolist())


@pytest.mark.parametrize("option", [{"core_op": "DCNv4"}, {"norm_layer": "BN"}, {"act_layer": "ReLU"}])
def test_an_option_that_no_published_model_has(option: dict) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        tiny("T", **option)
