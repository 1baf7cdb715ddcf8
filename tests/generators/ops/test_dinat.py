from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DinatConfig
from transformers.models.dinat import modeling_dinat
from transformers.utils import import_utils

from tests.generators.ops.test_neighborhood_attention import bias_waves, slow
from vitp_pipeline.generators.ops.dinat import DinatBackbone, NeighborhoodAttention

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def config(**changes: object) -> DinatConfig:
    settings = {
        "embed_dim": 8,
        "depths": [2, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "kernel_size": 3,
        "dilations": [[1, 3], [2], [1, 2], [1]],
        "mlp_ratio": 2.0,
        "out_features": STAGES,
    }
    return DinatConfig(**{**settings, **changes})


def filled(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that no initialization gives: all different, biases by position too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.5 if parameter.ndim == 1 else noise / (parameter[0].numel() ** 0.5))
    return model.eval()


def test_golden_module_with_padding() -> None:
    """Facts §2.3: a map of 4×5 in a window of 6×6, from a packed projection, nothing masked."""
    module = NeighborhoodAttention(4, 2, kernel_size=3, dilation=2).double()
    o, s = torch.meshgrid(torch.arange(12.0).double(), torch.arange(4.0).double(), indexing="ij")
    weights = torch.sin(0.9 * o + 0.4 * s + 0.2).chunk(3)
    biases = (0.5 * torch.cos(0.6 * torch.arange(12.0).double())).chunk(3)
    state = {"self.rpb": bias_waves(2, 3), "output.dense.bias": 0.1 * torch.arange(4.0).double()}
    state["output.dense.weight"] = torch.sin(-0.5 * o[:4] + 0.8 * s[:4] + 0.2)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        state |= {f"self.{name}.weight": weight, f"self.{name}.bias": bias}
    module.load_state_dict(state)
    i, j, c = torch.meshgrid(*(torch.arange(n).double() for n in (4, 5, 4)), indexing="ij")
    with torch.no_grad():
        y = module(torch.sin(0.3 * i - 0.7 * j + 0.5 * c + 0.1)[None])[0]
    assert y.sum().item() == pytest.approx(84.779069972, abs=1e-8)
    assert y.abs().sum().item() == pytest.approx(198.217938964, abs=1e-8)
    rows = {
        (0, 0): [0.69103416, 3.426480222, 5.34748791, 6.008211033],
        (3, 4): [1.298532157, -1.173999769, -3.334612118, -4.629828148],
        (1, 3): [1.365522444, -0.347192779, -1.950419613, -3.027148727],
        (3, 0): [0.328187217, 3.038150996, 5.028752939, 5.837107755],
    }
    for cell, expected in rows.items():
        assert y[cell].tolist() == pytest.approx(expected, abs=1e-8)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch):
    """transformers' own DiNAT, with the slow loop where it calls natten (which it does wrongly in 5.23)."""

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        projected = [
            project(hidden_states).unflatten(-1, (self.num_attention_heads, -1))
            for project in (self.query, self.key, self.value)
        ]
        return (slow(*projected, self.rpb, self.kernel_size, self.dilation)[0].flatten(3),)

    monkeypatch.setattr(modeling_dinat.NeighborhoodAttention, "forward", forward)
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "natten", (lambda: True, ""))
    return modeling_dinat.DinatBackbone


@pytest.mark.parametrize("changes", [{}, {"layer_scale_init_value": 0.5, "qkv_bias": False, "mlp_ratio": 3.0}])
def test_equals_transformers_own(theirs, changes: dict) -> None:
    """Same names of parameters, same maps, on a size where some levels are padded and others not."""
    ours, other = filled(DinatBackbone(config(**changes))), theirs(config(**changes)).eval()
    other.load_state_dict(ours.state_dict())
    pixels = torch.randn(1, 3, 44, 52, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        found, expected = ours(pixels).feature_maps, other(pixels).feature_maps
    assert [tuple(x.shape[1:]) for x in found] == [(8, 11, 13), (16, 6, 7), (32, 3, 4), (64, 2, 2)]
    for a, b in zip(found, expected, strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize("stages", [["stage2"], ["stem", "stage4"]])
def test_some_stages_alone(theirs, stages: list[str]) -> None:
    ours, other = filled(DinatBackbone(config(out_features=stages))), theirs(config(out_features=stages)).eval()
    other.load_state_dict(ours.state_dict())
    assert ours.channels == other.channels
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        for a, b in zip(ours(pixels).feature_maps, other(pixels).feature_maps, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_dilations_count() -> None:
    """More cells see each other with a larger dilation; the parameters are the same."""
    one, three = (filled(DinatBackbone(config(dilations=[[1, d], [2], [1, 2], [1]]))) for d in (1, 3))
    three.load_state_dict(one.state_dict())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        assert (one(pixels).feature_maps[0] - three(pixels).feature_maps[0]).abs().max() > 0.01


def test_dilations_of_another_depth_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dilations for \[2, 1\] blocks, the levels have \[2, 1, 2, 1\]"):
        DinatBackbone(config(dilations=[[1, 2], [1]]))
