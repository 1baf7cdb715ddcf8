from __future__ import annotations

import importlib
import sys

import pytest
import torch

from vitp_pipeline.errors import UserError
from vitp_pipeline.generators.openmmlab.mmcv_stub import EXTENSION, MissingOperators, prepare_mmcv

own_operators = prepare_mmcv()
without_operators = pytest.mark.skipif(own_operators, reason="this mmcv has its compiled operators")


@without_operators
def test_packages_import_and_operators_refuse() -> None:
    for name in ("mmcv.ops", "mmseg.models", "mmdet.models"):
        importlib.import_module(name)
    extension = sys.modules[EXTENSION]
    assert extension.__spec__ is not None and extension.__spec__.name == EXTENSION
    with pytest.raises(UserError, match=r"nms.*\(No module named"):
        extension.nms(torch.zeros(1, 4))


@without_operators
def test_stand_in_has_no_private_names() -> None:
    assert not hasattr(MissingOperators("why"), "__path__")


@without_operators
def test_attention_on_another_device_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What mmcv's layer does with a CUDA tensor, without one: `is_cuda` is made to say yes."""
    module = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    torch.manual_seed(0)
    layer = module.MultiScaleDeformableAttention(
        embed_dims=16, num_heads=2, num_levels=1, num_points=2, batch_first=True
    ).eval()
    query = torch.randn(1, 12, 16)
    extra = {
        "reference_points": torch.rand(1, 12, 1, 2),
        "spatial_shapes": torch.tensor([[3, 4]]),
        "level_start_index": torch.tensor([0]),
    }
    expected = layer(query, **extra)
    taken = []
    plain = module.MultiScaleDeformableAttnFunction.apply
    monkeypatch.setattr(module, "IS_CUDA_AVAILABLE", True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(
        module.MultiScaleDeformableAttnFunction, "apply", lambda *given: taken.append(1) or plain(*given)
    )
    assert torch.equal(layer(query, **extra), expected)
    assert taken


@without_operators
def test_preparing_twice_changes_nothing() -> None:
    before = sys.modules[EXTENSION]
    assert prepare_mmcv() is False
    assert sys.modules[EXTENSION] is before


def test_working_operators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    real = ModuleType(EXTENSION)
    monkeypatch.setitem(sys.modules, EXTENSION, real)
    module = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    sentinel = object()
    monkeypatch.setattr(module, "MultiScaleDeformableAttnFunction", sentinel)
    assert prepare_mmcv() is True
    assert sys.modules[EXTENSION] is real
    assert module.MultiScaleDeformableAttnFunction is sentinel
